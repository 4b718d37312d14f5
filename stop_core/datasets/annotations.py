"""Reading and checking annotation files, for the readers of all datasets.

Errors name file and line. `where` is always "<file>, line <number>", or the closest to
it that the format allows; messages begin with it.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stop_core.datasets.clip import tidied
from stop_core.storage.documents import parse_json, read_text, require_file, shown
from stop_core.storage.names import is_a_path_below_a_folder, is_the_name_of_a_file

MOST_BYTES = 1 << 29
"""Size limit of an annotation that is read line by line."""
MOST_LINES = 2_000_000
MOST_ANNOTATIONS = 1 << 28
"""Size limit in bytes of an annotation that is read as a whole."""
_AFRESH = "unpack the annotation files afresh"
_KINDS: dict[type, str] = {list: "a list", dict: "an object", str: "a text"}


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the location of each line, and the line; skips blank lines."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r\n")


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of an annotation with their ends, without loading the whole file."""
    if (size := require_file(path).stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and at most {MOST_BYTES:,} are read")
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file):
                if number == MOST_LINES:
                    raise ValueError(
                        f"{path} has more than {MOST_LINES:,} lines: divide the dataset, and "
                        "preprocess the parts into separate caches"
                    )
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason})") from error


def read_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the location and the name on each line of a list of videos."""
    for where, line in read_lines(path):
        yield where, safe_name(line.strip(), where)


def read_annotations(path: Path, kind: type) -> Any:
    """Reads a JSON file that holds a `kind`, list or dict."""
    try:
        value = parse_json(read_text(path, MOST_ANNOTATIONS).removeprefix("\ufeff"), _object)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}"
        raise ValueError(f"{where}: not JSON ({error.msg}); {_AFRESH}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; or {_AFRESH}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected {_KINDS[kind]} in JSON; {_AFRESH}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object and refuses duplicate names, of which `json` would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(name)} is there twice in one object: remove one of them")
    return values


def read_entries(path: Path, entries: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the location and the entry of each JSON object in a list."""
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of entries; {_AFRESH}")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object, found {shown(entry)}; {_AFRESH}")
        yield where, entry


def get_field(
    entry: dict[str, Any], name: str, kind: type, where: str, *, may_be_empty: bool = False
) -> Any:
    """Returns a field of a JSON object that must be there and be of `kind`."""
    value = entry.get(name)
    if not isinstance(value, kind) or not (value or may_be_empty):
        raise ValueError(
            f"{where}: expected {_KINDS[kind]} {name!r}, found {shown(value)}; {_AFRESH}"
        )
    return value


def get_texts(entry: dict[str, Any], name: str, where: str) -> list[str]:
    """Returns a field of a JSON object that must be a list of texts, at least one."""
    texts: list[str] = get_field(entry, name, list, where)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: expected a list of texts, found {texts!r}")
    return texts


def read_csv_rows(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the location and the row of each row of a CSV file whose header has `columns`."""
    reader = csv.DictReader(_lines(path), strict=True)
    done = 0
    try:
        header = reader.fieldnames or []
        if absent := [name for name in columns if name not in header]:
            raise ValueError(
                f"{path}, line 1: expected the column {' and '.join(absent)}, "
                f"found {', '.join(header) or 'nothing'}"
            )
        if twice := [name for name in columns if list(header).count(name) > 1]:
            raise ValueError(f"{path}, line 1: the column {twice[0]} appears twice; remove one")
        for row in reader:
            done = reader.line_num
            where = f"{path}, line {done}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(header)} fields ({', '.join(header)})")
            yield where, row
    except csv.Error as error:
        # Not line_num: an unclosed quotation extends to the end of the file.
        raise ValueError(f"{path}, line {done + 1}: not CSV ({error})") from error


def safe_name(name: str, where: str) -> str:
    """Returns `name` if it is a plain file name that cannot leave a folder."""
    if not is_the_name_of_a_file(name):
        raise ValueError(
            f"{where}: expected the name of a video, found {shown(name)}; mend that line"
        )
    return name


def safe_path(path: str, where: str) -> str:
    """Returns `path` if it is relative and stays below the folder that it is relative to."""
    if not is_a_path_below_a_folder(path):
        raise ValueError(
            f"{where}: expected a path below the data root, like folder/name.mp4, found "
            f"{shown(path)}; mend that line"
        )
    return path


def class_label(name: str, where: str) -> str:
    """Returns the name of a class, `tidied`; ValueError if it is empty."""
    if not (label := tidied(name)):
        raise ValueError(f"{where}: expected the name of a class, found {name!r}; mend that line")
    return label
