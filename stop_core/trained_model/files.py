"""What a trained model is on disk: a folder of its own, which can be copied anywhere.

    <folder>/prompts.safetensors   the trained tensors of the chosen epoch, and nothing else
    <folder>/config.yaml           the settings, by their option names
    <folder>/labels.json           the classes in the order of the logits, and their sentences
    <folder>/preprocessing.json    how a video becomes the frames that the model was trained on
    <folder>/provenance.json       data, seeds, measures, code and weights that it came from
    <folder>/README.md             the model card: the same for a reader
    <folder>/SHA256SUMS            of all but the card, which anybody may edit

Nothing in it runs code when it is loaded. The CLIP itself is not in it: it is named, and known
again by a fingerprint. No torch here: what only looks at a model need not wait for it.
"""

import importlib.metadata
import json
import os
import platform
import secrets
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stop_core.datasets import class_words
from stop_core.evaluation.stored_predictions import RESULT
from stop_core.settings.class_templates import class_sentences
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.atomic import appearing, write_whole
from stop_core.storage.checksums import SUMS, check_sums, write_sums
from stop_core.storage.documents import (
    Number,
    Positive,
    Whole,
    build,
    parse_json,
    parse_yaml,
    read_text,
    shown,
    shown_text,
)
from stop_core.storage.names import inside
from stop_core.trained_model.frames import Pixel, Preprocessing

_T = TypeVar("_T")

MODEL = "model"
"""Name of the model's folder inside the folder of a training run."""
MODEL_FORMAT = 1
TOWER = "tower.json"
"""Beside the last checkpoint of a training: `TowerFacts`."""
PROMPTS = "prompts.safetensors"
CONFIG_FILE = "config.yaml"
LABELS = "labels.json"
PREPROCESSING = "preprocessing.json"
PROVENANCE = "provenance.json"
CARD = "README.md"
_READ = (PROMPTS, CONFIG_FILE, LABELS, PREPROCESSING, PROVENANCE)
FILES = (*_READ, CARD, SUMS)


@dataclass(frozen=True)
class ClassLabel:
    """One class of a recognition model."""

    name: str
    """As the dataset writes it."""
    sentences: tuple[str, ...]
    """What the text tower was given for it: the words of the name in every template."""


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from. A zero-shot model that nobody trained has the tower alone."""

    tower_fingerprint: str
    """Over the weights of the frozen CLIP as they were in memory."""
    run: str = ""
    """Name of the training."""
    dataset: str = ""
    fold: Whole = 0
    metrics: dict[str, Number] = field(default_factory=dict)
    """As measured at the end of the training, by `split/measure`."""
    config_hash: str = ""
    data_hash: str = ""
    git_commit: str = ""
    mlflow_run_id: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Of Python and of the packages that it was trained with."""


@dataclass(frozen=True)
class ModelRecord:
    """All of a trained model but its tensors."""

    config: ExperimentConfig
    classes: tuple[ClassLabel, ...]
    """In the order of the logits; empty for a retrieval model."""
    preprocessing: Preprocessing
    provenance: Provenance


@dataclass(frozen=True)
class TowerFacts:
    """What has to be noted of a CLIP to know it again. See `tower_facts` of `model.py`."""

    fingerprint: str
    mean: Pixel
    std: Pixel
    size: Positive
    """Of the images that it takes, in pixels."""

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_whole(path, _json(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "TowerFacts":
        """Reads what `save` wrote; raises OSError or ValueError if there is none."""
        return build(cls, parse_json(read_text(path)), path)


def label_classes(names: Sequence[str], templates: Sequence[str]) -> tuple[ClassLabel, ...]:
    """The classes with their sentences; `templates` are sentences with {}."""
    sentences = class_sentences(templates, [class_words(name) for name in names])
    return tuple(ClassLabel(n, tuple(row)) for n, row in zip(names, sentences, strict=True))


def versions() -> dict[str, str]:
    """Of Python and the packages that a result may depend on."""
    packages = ("torch", "open_clip_torch", "stop-video")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def write_model(
    folder: Path, record: ModelRecord, write_prompts: Callable[[Path], object], card: str
) -> None:
    """Makes `folder`, which appears whole or not at all, in the place of one that is there.

    Args:
        folder: of the model.
        record: what is to be said of it.
        write_prompts: writes the trained tensors, as safetensors, to the path that it is given.
        card: the text of the model card.

    Raises:
        OSError: if it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        staging.mkdir()
        with appearing(staging / PROMPTS) as prompts:
            write_prompts(prompts)
        texts = {
            CONFIG_FILE: yaml.safe_dump(_plain(record.config.parameters()), sort_keys=False),
            LABELS: _json({"classes": [asdict(label) for label in record.classes]}),
            PREPROCESSING: _json(asdict(record.preprocessing)),
            PROVENANCE: _json({"format_version": MODEL_FORMAT, **asdict(record.provenance)}),
            CARD: card,
        }
        for name, text in texts.items():
            write_whole(staging / name, text)
        write_sums(staging, without=[CARD])
        if inside(folder.parent, folder.name).exists():  # the rename wants the name free
            shutil.rmtree(folder)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def find_model(where: Path) -> Path:
    """The model's folder that `where` names: itself, or that of a training run.

    Raises:
        FileNotFoundError: if there is none; the message says what to do.
    """
    needed = [name for name in FILES if name != CARD]
    for folder in (where, where / MODEL):
        missing = [name for name in needed if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(needed):
            raise FileNotFoundError(
                f"the model {folder} has no {' and no '.join(missing)}: copy its folder again, as "
                "a whole" + _made_again(folder.parent)
            )
    if (where / RESULT).is_file():
        raise FileNotFoundError(
            f"the training run {where} has no folder {MODEL}/: copy the run again, as a whole"
            + _made_again(where)
        )
    if (where / "checkpoints").is_dir() or any(where.glob("checkpoint_*")):
        raise FileNotFoundError(
            f"the training in {where} is not finished: give the same training command again"
        )
    raise FileNotFoundError(
        f"there is no trained model at {where}: give the folder that `train` printed at its end, "
        f"<output>/runs/<name>, or the folder {MODEL}/ in it"
    )


def _made_again(run: Path) -> str:
    """What else helps where a model is a part of its training run, which has its tensors too."""
    if not (run / RESULT).is_file():
        return ""
    return f"; or delete {run / RESULT} and give the training command again, which writes the model"


def read_record(folder: Path) -> ModelRecord:
    """Reads all of a model but its tensors.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one of them is damaged or of another version; the message names it.
    """
    record = ModelRecord(
        provenance=_read(folder / PROVENANCE, parse_json, _provenance),
        config=_read(folder / CONFIG_FILE, parse_yaml, ExperimentConfig.from_parameters),
        classes=_read(folder / LABELS, parse_json, partial(build, _Labels)).classes,
        preprocessing=_read(folder / PREPROCESSING, parse_json, partial(build, Preprocessing)),
    )
    try:
        check_sums(folder, _READ)
    except FileNotFoundError as problem:
        name = Path(problem.filename).name
        raise FileNotFoundError(
            f"the model has no {name} at {folder}; {_remedy(folder)}"
        ) from problem
    except ValueError as problem:
        raise ValueError(f"{problem}; {_remedy(folder)}") from problem
    return record


def _remedy(folder: Path) -> str:
    command = f"cd {shlex.quote(str(folder))} && sha256sum {' '.join(_READ)} > {SUMS}"
    return f"copy its folder again, as a whole; if you changed it yourself: `{command}`"


@dataclass(frozen=True)
class _Labels:
    """What `labels.json` holds."""

    classes: tuple[ClassLabel, ...]


def _read(path: Path, parse: Callable[[str], Any], make: Callable[[Any], _T]) -> _T:
    try:
        return make(parse(read_text(path)))
    except FileNotFoundError as problem:
        raise FileNotFoundError(
            f"the model has no {path.name} at {path.parent}; copy its folder again, as a whole"
        ) from problem
    except ValueError as problem:
        raise ValueError(
            f"{path} cannot be read ({shown_text(problem)}); copy the model's folder again, as a "
            "whole"
        ) from problem


def _provenance(values: Any) -> Provenance:
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if shown(version) != str(MODEL_FORMAT):  # True would be equal to 1
        raise ValueError(
            f"it is of version {shown(version)} of the model format, and this program reads "
            f"version {MODEL_FORMAT}"
        )
    return build(Provenance, values)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which is how YAML writes them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
