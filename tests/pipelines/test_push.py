"""`stop push` uploads a model; results computed from a model of the hub name its commit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pyarrow.parquet as pq
import pytest

from pipelines.cli.options import model_path
from pipelines.cli.video_options import WorkerOptions
from pipelines.export import ExportConfig
from pipelines.export import main as export
from pipelines.index import IndexConfig
from pipelines.index import main as index
from pipelines.inference.model_choice import ModelChoice
from pipelines.predict import PredictConfig
from pipelines.predict import main as predict
from pipelines.push import PushConfig, main
from stop_core.trained_model.index import SearchIndex
from tests.hub_server import Hub, only_hub
from tests.security.strangers import make_model

NAME = "someone/stop-motion"
HERE = WorkerOptions(workers=0, device="cpu")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The hub of this test, with an empty cache."""
    with only_hub(tmp_path / "cache") as hub:
        yield hub


def test_a_model_goes_to_the_hub_and_its_results_name_the_commit(
    hub: Hub,
    tmp_path: Path,
    write_video: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "outputs"
    make_model(output / "runs" / "motion-run" / "model")
    address = main(PushConfig(Path("motion-run"), NAME, output=output))
    assert address == f"hf://{NAME}@{hub.heads[NAME]}"
    assert f"--checkpoint {address}" in capsys.readouterr().out
    video, choice = write_video(tmp_path / "clip.mp4"), ModelChoice(model_path(f"hf://{NAME}"))

    rows = tmp_path / "rows.parquet"
    predict(PredictConfig((str(video),), choice, to=rows, workers=HERE, output=output))
    assert pq.read_schema(rows).metadata[b"stop.checkpoint"] == address.encode()
    assert f"using the model {address}" in capsys.readouterr().err

    export(ExportConfig(choice, "mlflow", output=output))
    assert address in (output / "exports" / "mlflow" / "MLmodel").read_text()

    index(IndexConfig((str(video),), model=choice, workers=HERE, output=output))
    of_index = SearchIndex(output / "index").info.model
    assert of_index["checkpoint"] == address
    hub.log.clear()
    assert ModelChoice.from_dict(of_index).found(output).load().labels
    assert hub.log == []
    # The index of a stranger downloads nothing that the user did not name.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=f"give --checkpoint {address}"):
        ModelChoice.from_dict(json.loads(json.dumps(of_index)))
    assert hub.log == []
