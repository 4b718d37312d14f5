"""`stop export` stores only programs that equal the model, atomically."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.cli.console import RunError
from pipelines.export import ExportConfig, main
from pipelines.inference.model_choice import ModelChoice
from stop_core.trained_model.files import LABELS, PREPROCESSING
from stop_core.trained_model.model import TrainedModel


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training run with a model; the exporter is replaced by one with a difference of 1e-4."""
    model = TrainedModel.zero_shot("tiny", None, ["red", "blue"], frames=2)
    model.save(tmp_path / "run" / "model")
    (tmp_path / "run" / "result.json").write_text("{}")

    def save(program: object, path: Path) -> Callable[[Tensor], Tensor]:
        path.write_text("a program")
        return lambda frames: model.logits(frames) + 1e-4

    exporter = "stop_core.trained_model.export"
    monkeypatch.setattr(f"{exporter}.export_program", lambda _: (None, model.logits))
    monkeypatch.setattr(f"{exporter}.save_program", save)
    return tmp_path / "run"


def test_a_program_is_stored_with_labels_and_preprocessing(run_folder: Path) -> None:
    main(ExportConfig(ModelChoice(run_folder)))
    out = run_folder / "exports" / "torch"
    found = json.loads((out / "parity.json").read_text())["largest_difference"]
    assert found == pytest.approx(1e-4, rel=0.2)
    for name in (LABELS, PREPROCESSING):
        assert (out / name).read_bytes() == (run_folder / "model" / name).read_bytes()
    with pytest.raises(FileExistsError, match="choose another --out, or remove it"):
        main(ExportConfig(ModelChoice(run_folder)))


def test_an_export_follows_no_link(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "exports").mkdir()
    victim = tmp_path / "victim"
    victim.mkdir()
    (run_folder / "exports" / ".torch.tmp").symlink_to(victim)
    main(ExportConfig(ModelChoice(run_folder)))
    assert list(victim.iterdir()) == []
    assert (run_folder / "exports" / "torch" / "parity.json").is_file()


def test_a_program_that_differs_too_much_is_refused_and_not_stored(run_folder: Path) -> None:
    before = sorted(run_folder.rglob("*"))
    with pytest.raises(RunError, match=r"differs from the model by 0\.0001.*nothing was stored"):
        main(ExportConfig(ModelChoice(run_folder), tolerance=1e-5, out=run_folder / "here"))
    assert sorted(run_folder.rglob("*")) == before
    assert torch.is_grad_enabled()


def test_clip_with_labels_can_be_exported(run_folder: Path, tmp_path: Path) -> None:
    choice = ModelChoice(tower="tiny", labels=("up", "down"), frames=3)
    main(ExportConfig(choice, "mlflow", output=tmp_path / "output"))
    inside = tmp_path / "output" / "exports" / "mlflow" / "artifacts" / "model"
    assert TrainedModel.load(inside).labels == ("up", "down")
    main(ExportConfig(ModelChoice(run_folder, labels=("up",)), "mlflow", out=tmp_path / "one"))
    assert TrainedModel.load(tmp_path / "one" / "artifacts" / "model").labels == ("up",)


def test_a_model_without_a_run_is_exported_to_the_output_folder(
    run_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "shared" / "of a colleague"
    (run_folder / "model").rename(tmp_path / "model")
    shutil.copytree(tmp_path / "model", copy)
    main(ExportConfig(ModelChoice(copy), output=tmp_path / "output"))
    assert (tmp_path / "output" / "exports" / "torch" / "parity.json").is_file()
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"register": "a"}, "--register needs --to mlflow"),
        ({"register": "a", "to": "mlflow", "out": Path("x")}, "give either --register or --out"),
        ({"alias": "champion", "to": "mlflow"}, "--alias needs --register"),
        ({"register": "hmdb51/stop", "to": "mlflow"}, "an empty name, one with / or :"),
        ({"register": "hmdb51:1", "to": "mlflow"}, "an empty name, one with / or :"),
        ({"register": " ", "to": "mlflow"}, "an empty name, one with / or :"),
        ({"register": "a", "to": "mlflow", "alias": "v1"}, "neither latest nor a version"),
        ({"register": "a", "to": "mlflow", "alias": "the best"}, "neither latest nor a version"),
        ({"tolerance": float("nan")}, "tolerance must be positive"),
    ],
)
def test_contradicting_export_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(ModelChoice(Path("run")), **options)
