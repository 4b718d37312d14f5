"""Exports a trained model as a program, or as an MLflow model that can be served."""

if __name__ == "__main__":  # python pipelines/export.py
    __import__("stop").run_file(__file__)

import json
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from stop_core.evaluation.stored_predictions import RESULT
from stop_core.storage.atomic import appearing_folder, fetched_folder
from stop_core.trained_model.files import CARD, LABELS, PREPROCESSING, PROVENANCE, find_model

from .cli.console import RunError, print_result, say
from .cli.folders import default_output
from .inference.model_choice import ModelChoice

ProgramFormat = Literal["torch", "onnx", "mlflow"]
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_REGISTERED = re.compile(r"(?!\s*\Z|\.\Z|\.\.)[^/:]+")
_ALIAS = re.compile(r"(?!(?:latest|v\d+)\Z)[\w-]{1,255}", re.IGNORECASE)
_PROGRAM = {"torch": "program.pt2", "onnx": "program.onnx"}


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained model as a program without this code, or as a model that MLflow serves.

    torch: an ExportedProgram (.pt2) for any number of videos that needs only torch. onnx: the same
    for ONNX Runtime. Both are compared with the model before they are stored. mlflow: a folder for
    `mlflow models serve`; with --register, an entry of MLflow's model registry.

    Examples:
      stop export --checkpoint outputs/runs/NAME --to torch
      stop export --checkpoint NAME --to mlflow --register hmdb51 --alias champion
      stop export --tower tiny --labels dog cat --to mlflow
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    to: ProgramFormat = "torch"
    """torch, onnx or mlflow."""
    out: Path | None = None
    """A new folder (default: exports/torch, onnx or mlflow in the folder of the training run, or in
    --output for a model without one)."""
    tolerance: float = 1e-3
    """Largest accepted difference of a logit, or of a number of an embedding, from the model."""
    register: str | None = None
    """With --to mlflow: register the model under this name in the MLflow store, instead of writing
    a folder."""
    alias: str | None = None
    """With --register: set this alias, such as champion, to the model."""
    output: Path = field(default_factory=default_output)
    """Folder of the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < float("inf"):
            raise ValueError(f"--tolerance must be positive and finite, got {self.tolerance}")
        if self.register is not None and self.to != "mlflow":
            raise ValueError("--register needs --to mlflow: programs are not MLflow models")
        if self.register is not None and self.out is not None:
            raise ValueError("give either --register or --out: the registry has its own storage")
        if self.to == "onnx" and (missing := [p for p in _ONNX if find_spec(p) is None]):
            raise ValueError(
                f"--to onnx needs {', '.join(missing)}; run pip install 'stop-video[export]'"
            )
        if self.alias is not None and self.register is None:
            raise ValueError("--alias needs --register: only registered models have aliases")
        if self.register is not None and not _REGISTERED.fullmatch(self.register):
            raise ValueError(
                f"--register is {self.register!r}, and MLflow refuses an empty name, one with / "
                "or :, and . or ..; choose another, such as hmdb51-stop"
            )
        if self.alias is not None and not _ALIAS.fullmatch(self.alias):
            raise ValueError(
                f"--alias is {self.alias!r}, and MLflow accepts letters, digits, _ and -, but "
                "neither latest nor a version such as v1; choose another, such as champion"
            )


def main(config: ExportConfig) -> None:
    """Exports the model, and prints the next command."""
    chosen = config.model.found(config.output)
    config = replace(config, model=chosen)
    if chosen.checkpoint is not None and not chosen.labels:
        with fetched_folder(chosen.folder) as here:
            _export(here, config)
        return
    # CLIP without training, or with other labels: a model that has no folder yet.
    trained = chosen.load()
    with tempfile.TemporaryDirectory() as scratch:
        trained.save(Path(scratch) / "model")
        _export(Path(scratch) / "model", config)


def _export(folder: Path, config: ExportConfig) -> None:
    if config.register is not None:
        _register(folder, config, config.register)
        return
    checkpoint, parent = config.model.checkpoint, config.output
    if isinstance(checkpoint, Path) and (find_model(checkpoint).parent / RESULT).is_file():
        parent = find_model(checkpoint).parent  # the training run
    out = config.out or parent / "exports" / config.to
    if out.exists():
        raise FileExistsError(f"{out} exists: choose another --out, or remove it")
    with appearing_folder(out) as staging:
        if config.to == "mlflow":
            from .serving.mlflow_model import save_mlflow_model

            save_mlflow_model(folder, staging, config.model.of_hub)
        else:
            _write_program(folder, config, staging)
    print_result(f"exported to {out}")
    if config.to == "mlflow":
        print_result(
            f"serve it: mlflow models serve --env-manager local -m {shlex.quote(str(out))}"
        )


def _register(folder: Path, config: ExportConfig, name: str) -> None:
    from stop_core.storage.private import without_password

    from .serving.mlflow_model import register
    from .tracking.store import tracking_uri

    version = register(folder, config.output, name, config.alias, config.model.of_hub)
    uri = f"models:/{name}@{config.alias}" if config.alias else f"models:/{name}/{version}"
    print_result(f"registered as version {version} of {name}")
    uri, store = shlex.quote(uri), shlex.quote(without_password(tracking_uri(config.output)))
    print_result(
        f"serve it: MLFLOW_TRACKING_URI={store} mlflow models serve --env-manager local -m {uri}"
    )


def _write_program(folder: Path, config: ExportConfig, out: Path) -> None:
    """Writes the program, its preprocessing and labels, and its largest difference."""
    from stop_core.trained_model.export import (
        export_program,
        largest_difference,
        save_onnx,
        save_program,
    )
    from stop_core.trained_model.model import TrainedModel

    trained = TrainedModel.load(folder, tower=config.model.tower)
    if trained.config.precision != "fp32":
        say(f"the model was trained and measured in {trained.config.precision}; exporting float32")
    say("exporting; this takes half a minute to several minutes")
    program, model = export_program(trained)
    save = save_onnx if config.to == "onnx" else save_program
    exported = save(program, out / _PROGRAM[config.to])
    found = largest_difference(exported, model, trained.preprocessing)
    say(f"largest difference from the model: {found:.2g} (at most {config.tolerance:g} allowed)")
    if not found <= config.tolerance:
        raise RunError(
            f"the exported program differs from the model by {found:.2g}, more than --tolerance "
            f"{config.tolerance:g}; nothing was stored. Use another --to"
        )
    for name in (LABELS, PREPROCESSING, PROVENANCE, CARD):
        shutil.copyfile(folder / name, out / name)
    parity = {"largest_difference": found, "tolerance": config.tolerance, **config.model.of_hub}
    (out / "parity.json").write_text(json.dumps(parity, indent=2) + "\n")
