"""A trained model on disk: one folder, which can be copied anywhere.

    <folder>/prompts.safetensors   only the trained tensors of the chosen epoch
    <folder>/config.yaml           the settings, by their option names
    <folder>/labels.json           the classes in the order of the logits, and their sentences
    <folder>/preprocessing.json    how a video becomes the frames that the model was trained on
    <folder>/provenance.json       data, seeds, metrics, code and weights
    <folder>/README.md             the model card: the same for a reader
    <folder>/SHA256SUMS            of all files except the card, which can be edited

Loading it runs no code of the folder. The CLIP is not in it: it is named, and recognised by a
fingerprint. This module does not import torch, so that commands that inspect a model start fast.
"""

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stop_core.cache.manifest import Manifest
from stop_core.datasets import class_words
from stop_core.evaluation.stored_predictions import RESULT
from stop_core.settings.class_templates import DEFAULT, class_sentences, find_templates
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.storage.atomic import (
    SUMS,
    appearing,
    appearing_folder,
    check_sums,
    remove_folder,
    write_sums,
    write_whole,
)
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
from stop_core.storage.names import P, inside
from stop_core.storage.paths import StoragePath
from stop_core.trained_model.frames import Pixel, Preprocessing

_T = TypeVar("_T")

MODEL = "model"
"""Name of the model's folder inside the folder of a training run."""
MODEL_FORMAT = 1
TOWER = "tower.json"
"""File with `TowerFacts`, next to the last checkpoint of a training."""
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
    """Input of the text tower: the words of the name in every template."""


@dataclass(frozen=True)
class Provenance:
    """Origin of a model. A zero-shot model has only the fingerprint."""

    tower_fingerprint: str
    """Hash of the weights of the frozen CLIP in memory."""
    run: str = ""
    """Name of the training."""
    dataset: str = ""
    fold: Whole = 0
    metrics: dict[str, Number] = field(default_factory=dict)
    """Results at the end of the training, by `split/metric`."""
    config_hash: str = ""
    data_hash: str = ""
    git_commit: str = ""
    mlflow_run_id: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Python and packages of the training."""


@dataclass(frozen=True)
class ModelRecord:
    """A trained model without its tensors."""

    config: ExperimentConfig
    classes: tuple[ClassLabel, ...]
    """In the order of the logits; empty for a retrieval model."""
    preprocessing: Preprocessing
    provenance: Provenance


@dataclass(frozen=True)
class TowerFacts:
    """Facts that identify a CLIP. See `tower_facts` of `model.py`."""

    fingerprint: str
    mean: Pixel
    std: Pixel
    size: Positive
    """Edge of the input images, in pixels."""

    def save(self, path: Path) -> None:
        """Writes the facts as JSON."""
        write_whole(path, _json(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "TowerFacts":
        """Reads a file of `save`; raises OSError or ValueError if that fails."""
        return build(cls, parse_json(read_text(path)), path)


def label_classes(names: Sequence[str], templates: Sequence[str]) -> tuple[ClassLabel, ...]:
    """Returns the classes with their sentences; `templates` are sentences with {}."""
    sentences = class_sentences(templates, [class_words(name) for name in names])
    return tuple(ClassLabel(n, tuple(row)) for n, row in zip(names, sentences, strict=True))


def refuse_other_classes(record: ModelRecord, manifest: Manifest) -> None:
    """Raises ValueError for a cache with other classes, if each class has learned weights."""
    names = tuple(label.name for label in record.classes)
    if not METHODS[record.config.method].reads_text and names != manifest.class_names:
        raise ValueError(
            f"the method {record.config.method} has learned weights for each class of "
            f"{record.provenance.dataset or 'its training'}, and {manifest.dataset} has other "
            "classes or captions; evaluate a method that reads text, or use a cache with the same "
            "classes"
        )


def templates_for(
    record: ModelRecord, manifest: Manifest, given: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Returns the templates for a cache: the given ones, those of the training, or the default."""
    if not given and manifest.dataset == record.provenance.dataset:
        return record.config.templates
    return find_templates(given or (DEFAULT,), manifest.dataset)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result can depend on."""
    packages = ("torch", "open_clip_torch", "stop-video")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def write_model(
    folder: StoragePath, record: ModelRecord, write_prompts: Callable[[Path], object], card: str
) -> None:
    """Writes `folder` atomically, and replaces an existing one; `write_prompts` writes tensors."""
    with appearing_folder(folder) as staging:
        with appearing(staging / PROMPTS) as prompts:
            write_prompts(prompts)
        settings = {  # YAML has no tuples
            name: list(value) if isinstance(value, tuple) else value
            for name, value in record.config.parameters().items()
        }
        texts = {
            CONFIG_FILE: yaml.safe_dump(settings, sort_keys=False),
            LABELS: _json({"classes": [asdict(label) for label in record.classes]}),
            PREPROCESSING: _json(record.preprocessing.to_dict()),
            PROVENANCE: _json({"format_version": MODEL_FORMAT, **asdict(record.provenance)}),
            CARD: card,
        }
        for name, text in texts.items():
            write_whole(staging / name, text)
        write_sums(staging, without=[CARD])
        remove_folder(inside(folder.parent, folder.name))  # a rename replaces no folder


def find_model(where: P) -> P:
    """Returns the model's folder, `where` or inside of it; FileNotFoundError if incomplete."""
    needed = [name for name in FILES if name != CARD]
    for folder in (where, where / MODEL):
        missing = [name for name in needed if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(needed):
            raise FileNotFoundError(
                f"the model {folder} has no {' and no '.join(missing)}: copy the whole folder "
                f"again{_retraining(folder.parent)}"
            )
    if (where / RESULT).is_file():
        raise FileNotFoundError(
            f"the training run {where} has no folder {MODEL}/: copy the whole run again"
            f"{_retraining(where)}"
        )
    if (where / "checkpoints").is_dir() or any(where.glob("checkpoint_*")):
        raise FileNotFoundError(
            f"the training in {where} is not finished: run its `stop train` command again to "
            "resume it"
        )
    raise FileNotFoundError(
        f"there is no trained model at {where}: give the folder that `stop train` printed at its "
        f"end, <output>/runs/<name>, or the folder {MODEL}/ in it"
    )


def _retraining(run: StoragePath) -> str:
    # A finished training run has the tensors too: the command writes the model from them.
    if not (run / RESULT).is_file():
        return ""
    return f"; or delete {run / RESULT} and run the training command again, which writes the model"


def read_record(folder: Path) -> ModelRecord:
    """Reads a model without its tensors, and compares all files with their checksums."""
    record = ModelRecord(
        provenance=_read(folder / PROVENANCE, parse_json, _provenance),
        config=_read(folder / CONFIG_FILE, parse_yaml, ExperimentConfig.from_parameters),
        classes=_read(folder / LABELS, parse_json, partial(build, _Labels)).classes,
        preprocessing=_read(folder / PREPROCESSING, parse_json, partial(build, Preprocessing)),
    )
    try:
        check_sums(folder, _READ)
    except (FileNotFoundError, ValueError) as problem:
        accept = f"cd {shlex.quote(str(folder))} && sha256sum {' '.join(_READ)} > {SUMS}"
        raise ValueError(
            f"{problem}; copy the whole folder again, or, if you changed it, run `{accept}`"
        ) from problem
    return record


@dataclass(frozen=True)
class _Labels:
    classes: tuple[ClassLabel, ...]


def _read(path: Path, parse: Callable[[str], Any], make: Callable[[Any], _T]) -> _T:
    try:
        return make(parse(read_text(path)))
    except ValueError as problem:
        raise ValueError(
            f"{path} cannot be read ({shown_text(problem)}); copy the whole folder again"
        ) from problem


def _provenance(values: Any) -> Provenance:
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if shown(version) != str(MODEL_FORMAT):  # True would be equal to 1
        raise ValueError(
            f"it has version {shown(version)} of the model format, and this program reads "
            f"version {MODEL_FORMAT}"
        )
    return build(Provenance, values)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
