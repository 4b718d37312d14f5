"""Text templates of the classes: sets by name from `templates.yaml`, or given sentences.

This module does not import torch: the driver resolves the names before it starts a worker.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from stop_core.storage.documents import MOST_YAML, parse_yaml, read_text, shown

TEMPLATES = Path(__file__).with_name("templates.yaml")
DEFAULT = "default"
_PLACE = "{}"
_ANY_DATASET = "other"
# A table or sweep asks for the same file hundreds of times, and parsing it takes 15 ms.
_parse = lru_cache(maxsize=8)(parse_yaml)


def check_templates(templates: tuple[str, ...]) -> None:
    """Raises ValueError unless `templates` are sentences, or the name of a set of them."""
    if not templates or not all(isinstance(one, str) and one.strip() for one in templates):
        raise ValueError(
            f"templates needs at least one sentence and no empty one, got {templates}; give "
            f"sentences with {_PLACE} for the class, or the name of a set such as {DEFAULT}"
        )
    without = [one for one in templates if _PLACE not in one]
    if without and len(templates) > 1:
        raise ValueError(
            f"templates: {without[0]!r} has no {_PLACE} for the class; a set or a file of "
            "templates cannot be combined with others"
        )


def find_templates(templates: tuple[str, ...], dataset: str) -> tuple[str, ...]:
    """Returns the sentences of `templates`; raises ValueError or OSError if there are none.

    They are sentences, which are returned unchanged; or a single name, of a set of `dataset` in
    `TEMPLATES` (of "other" if it is not listed), or of a YAML file with a list of sentences.
    """
    if _PLACE in templates[0]:
        return templates
    (name,) = templates
    if Path(name).suffix in (".yaml", ".yml"):
        return _sentences(_read(Path(name)), name)
    datasets = _read(TEMPLATES)
    if not isinstance(datasets, dict):
        raise ValueError(f"{TEMPLATES} must contain the sets of templates of each dataset")
    sets = datasets.get(dataset, datasets.get(_ANY_DATASET))
    if not isinstance(sets, dict) or name not in sets:
        known = ", ".join(sets) if isinstance(sets, dict) else "none"
        raise ValueError(
            f"{TEMPLATES} has no set {name!r} of templates for {dataset}, only {known}; name one "
            f"of these, add it there, or give a .yaml file or sentences with {_PLACE} for the class"
        )
    return _sentences(sets[name], f"{TEMPLATES}, {dataset}, {name}")


def class_sentences(templates: Sequence[str], class_words: Sequence[str]) -> list[list[str]]:
    """Returns a row for each class: each template with the words of the class."""
    for one in templates:  # the name of a set needs `find_templates` first
        if _PLACE not in one:
            raise ValueError(f"{shown(one)} is not a sentence with {_PLACE} for the class")
    return [[one.replace(_PLACE, words) for one in templates] for words in class_words]


def _sentences(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where} must be a list of at least one sentence, got {shown(found)}")
    for one in found:
        if not isinstance(one, str) or _PLACE not in one:
            raise ValueError(f"{where}: {shown(one)} is not a sentence with {_PLACE} for the class")
    return tuple(found)


def _read(path: Path) -> Any:
    try:
        return _parse(read_text(path, MOST_YAML))
    except OSError as problem:
        raise OSError(f"the templates {path} cannot be read ({problem.strerror})") from problem
    except ValueError as problem:
        raise ValueError(f"{path}, {problem}") from problem
