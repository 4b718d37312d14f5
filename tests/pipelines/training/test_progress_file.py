"""Laws of the progress of a training."""

from pathlib import Path

from pipelines.training.progress_file import ProgressFile, TrainingLines


def test_every_event_is_printed_once_after_a_restart_of_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    lines = TrainingLines(ProgressFile(file))
    assert lines.events() == []
    assert TrainingLines(ProgressFile(file), lambda: "waiting for x").line() == "waiting for x"
    first = ProgressFile(file)
    first.report("resuming x")
    assert lines.line() == "loading the model and the data"
    assert lines.events() == ["resuming x"]
    first.write(1, 4, 0.5)
    assert lines.line() == "step 1/4, loss 0.500"
    first.report("epoch 1/2: a")
    second = ProgressFile(file)  # of the worker that replaces it
    second.report("resuming y")
    second.write(4, 4, 0.25)
    second.report("epoch 2/2: b")
    events = lines.events()
    assert [event.partition(", about")[0] for event in events] == [
        "epoch 1/2: a",
        "resuming y",
        "epoch 2/2: b",
    ]
    assert lines.events() == []
    assert lines.line() == "step 4/4, loss 0.250, validating and testing"
