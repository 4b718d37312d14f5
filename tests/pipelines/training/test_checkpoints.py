"""A checkpoint appears whole or not at all; one that is damaged later ends no training."""

import errno
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from pipelines.cli.errors import RunError
from pipelines.training.checkpoints import SNAPSHOT, furthest, keep, numbered, set_damage_aside
from pipelines.training.task import ALONE
from stop_core.training.checkpoint import OPTIMIZER, Checkpoint
from stop_core.training.run_state import Origin, RunProgress

ORIGIN = Origin("run", "c" * 12, "d" * 64, "", {})


def _checkpoint(folder: Path, step: int, final: dict[str, float] | None = None) -> Path:
    weights = {"a": torch.full((100,), float(step))}
    progress = RunProgress(step=step, final=final)
    whole = Checkpoint(progress, ORIGIN, weights, weights, {}, {}, {"state": {0: weights}})
    return keep(folder, whole.save)


def _cut_short(checkpoint: Path) -> None:
    file = checkpoint / OPTIMIZER
    file.write_bytes(file.read_bytes()[:-40])


def _snapshot(run: Path, *noted: Path) -> None:
    results = [{"checkpoint_dir_name": path.name} for path in noted]
    values = {"ray_version": version("ray"), "checkpoint_results": results}
    (run / SNAPSHOT).write_text(json.dumps(values))


def test_a_checkpoint_that_was_broken_off_leaves_nothing(tmp_path: Path) -> None:
    first = _checkpoint(tmp_path, 1)

    def breaks_off(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, breaks_off)
    assert list(tmp_path.iterdir()) == numbered(tmp_path) == [first]


def test_a_full_disk_is_one_sentence_and_leaves_no_part_on_it(tmp_path: Path) -> None:
    def fills(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot be written to .* \(the disk is full\); make room"):
        keep(tmp_path, fills)
    assert not list(tmp_path.iterdir())


def test_the_furthest_counts_whoever_made_it_and_whether_or_not_ray_has_noted_it(
    tmp_path: Path,
) -> None:
    assert furthest(tmp_path) is None
    noted = _checkpoint(tmp_path, 10)
    _snapshot(tmp_path, noted)
    unnoted = _checkpoint(tmp_path, 12)
    _checkpoint(tmp_path / ALONE, 11)
    assert furthest(tmp_path, noted) == unnoted
    # A training ends with a checkpoint of as many steps as its last epoch.
    ended = _checkpoint(tmp_path / ALONE, 12, {"test/top1": 0.5})
    assert furthest(tmp_path, unnoted) == ended
    again = _checkpoint(tmp_path, 12, {"test/top1": 0.5})
    assert (furthest(tmp_path, ended), furthest(tmp_path, again)) == (ended, again)


def test_a_damaged_checkpoint_is_set_aside_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (_checkpoint(tmp_path, step) for step in (1, 2))
    _snapshot(tmp_path, first, second)
    set_damage_aside(tmp_path)
    assert (tmp_path / SNAPSHOT).exists()  # nothing to set aside
    assert not capsys.readouterr().err
    _cut_short(second)
    set_damage_aside(tmp_path)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"the checkpoint {second} cannot be read (")
    assert said.endswith(f"the training goes on from {first}")
    assert furthest(tmp_path) == first
    assert not (tmp_path / SNAPSHOT).exists()  # Ray would raise at what it names
    _checkpoint(tmp_path, 2)
    set_damage_aside(tmp_path)
    assert len(list(tmp_path.glob("damaged-*"))) == 2


@pytest.mark.parametrize(
    "text", ["", "{}", '{"ray_version": "1.0", "checkpoint_results": []}', "removed"]
)
def test_a_list_that_ray_could_not_read_or_trust_is_set_aside(tmp_path: Path, text: str) -> None:
    first = _checkpoint(tmp_path, 1)
    if text == "removed":  # what has been advised to do with a damaged checkpoint
        _snapshot(tmp_path, first, tmp_path / "checkpoint_000001")
    else:
        (tmp_path / SNAPSHOT).write_text(text)
    set_damage_aside(tmp_path)
    assert not (tmp_path / SNAPSHOT).exists()
    assert furthest(tmp_path) == first


def test_a_training_does_not_begin_again_unasked_if_no_checkpoint_can_be_read(
    tmp_path: Path,
) -> None:
    only = _checkpoint(tmp_path / ALONE, 1)
    _cut_short(only)
    with pytest.raises(RunError, match=r"no checkpoint below .* the training begins again"):
        set_damage_aside(tmp_path)
    assert only.exists()


def test_what_a_kill_has_left_of_a_checkpoint_goes(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / ALONE):
        (folder / ".checkpoint_abc").mkdir(parents=True)
    set_damage_aside(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / ALONE]
    assert not list((tmp_path / ALONE).iterdir())
