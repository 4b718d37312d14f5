"""JSON, YAML and Parquet from untrusted sources, read with limits and typed.

All files that someone else may have written are read here. An invalid file raises a ValueError of
one sentence that names it; size, depth and expansion are limited by the constants below.
"""

import json
import math
import re
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from annotated_types import Interval, Predicate

from stop_core.storage.names import is_the_name_of_a_file
from stop_core.storage.paths import StoragePath

_T = TypeVar("_T")

MOST_JSON = 1 << 26
"""Bytes of a JSON file of this project: the manifest of 25 million clips."""
MOST_YAML = 1 << 20
"""Bytes of a YAML file, and characters of it with all aliases expanded."""
DEEPEST = 64
"""Nesting levels of lists and mappings."""
MOST_TABLE = 1 << 31
"""Bytes of a Parquet table in memory."""
_SHOWN = 200
_MOST_NUMBER = 1 << 53

Whole = Annotated[int, Interval(ge=0, le=_MOST_NUMBER)]
"""A count, or a number of bytes."""
Positive = Annotated[int, Interval(ge=1, le=1 << 31)]


def is_a_sha256(text: str) -> bool:
    """Returns whether a text is a SHA-256 in hexadecimal."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def is_finite(value: float) -> bool:
    """Returns whether a value is neither infinite nor NaN."""
    return math.isfinite(value)


Sha256 = Annotated[str, Predicate(is_a_sha256)]
Name = Annotated[str, Predicate(is_the_name_of_a_file)]
"""The name of a file or folder in a given folder."""
Finite = Annotated[float, Predicate(is_finite)]


if TYPE_CHECKING:
    Number = float
else:
    Number = int | float  # stays what it is, so that reading and writing keeps its bytes


def read_text(path: StoragePath, most: int = MOST_JSON) -> str:
    """Reads a whole text file; ValueError if it is larger than `most` bytes, or not UTF-8."""
    if isinstance(path, Path):
        require_file(path)
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path} is too large: {size:,} bytes, and the limit is {most:,}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not a text file in UTF-8 ({problem.reason})") from problem


def require_file(path: Path) -> Path:
    """Returns `path` if it is a regular file, else raises OSError: opening a pipe would block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not a regular file")
    return path


def parse_json(
    text: str, make_object: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> Any:
    """Returns the value of a JSON text; ValueError if it is not JSON, or nested too deeply.

    `make_object` builds an object from pairs of names and values; default: `dict`.
    """
    try:
        value = json.loads(text, object_pairs_hook=make_object)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, list | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text without tags; ValueError if it is not YAML, or too large."""
    node = compose_yaml(text)
    if node is None:
        return None
    with _yaml_errors(node.start_mark.line):
        return yaml.SafeLoader("").construct_document(node)


def compose_yaml(text: str) -> yaml.Node | None:
    """Returns the nodes of a YAML text with their lines; raises the errors of `parse_yaml`."""
    if len(text) > MOST_YAML:
        raise ValueError(f"it has {len(text):,} characters, and at most {MOST_YAML:,} are read")
    with _yaml_errors():
        return _BoundedLoader(text).get_single_node()


@contextmanager
def _yaml_errors(line: int = 0) -> Iterator[None]:
    try:
        yield
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as problem:
        # PyYAML raises the last four for a tag, such as !!int, on a value of another type.
        mark = getattr(problem, "problem_mark", None)
        reason = getattr(problem, "problem", None) or shown_text(problem)
        line = mark.line if mark else line
        raise ValueError(f"line {line + 1}: this is not YAML: {reason}") from problem


class _BoundedLoader(yaml.SafeLoader):
    """Limits the nesting levels of a document, and its characters with all aliases expanded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._cost = 0
        self._cost_of: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        start = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        before = self._cost
        self._level += 1
        if self._level > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {DEEPEST} levels deep", problem_mark=start
            )
        node = super().compose_node(parent, index)
        self._level -= 1
        if is_alias and id(node) not in self._cost_of:
            raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=start)
        if is_alias:
            self._cost += self._cost_of[id(node)]
        else:
            self._cost += 1 + len(node.value) if isinstance(node, yaml.ScalarNode) else 1
            self._cost_of[id(node)] = self._cost - before
        if self._cost > MOST_YAML:
            raise yaml.MarkedYAMLError(
                problem=f"its aliases expand to more than {MOST_YAML:,} characters",
                problem_mark=start,
            )
        return node


def build(kind: type[_T], value: Any, where: object = "") -> _T:
    """Builds a dataclass from a JSON value; ValueError if the type or range of a field is wrong.

    Types are strict: a text is not read as a number, nor a number as a boolean. Unknown fields are
    refused; a field with a default can be missing.
    """
    from pydantic import ValidationError

    try:
        # As JSON, where a tuple is a list.
        text = json.dumps(value)
        adapter = _adapter(kind)  # type: ignore[arg-type]  # a class is hashable
        return cast(_T, adapter.validate_json(text, strict=True, extra="forbid"))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = shown_text(".".join(map(str, first["loc"]))) if first["loc"] else "the whole"
        fault = first["msg"].removeprefix("Value error, ")
        if first["type"] == "predicate_failed":
            _, name, _ = fault.split("'")
            fault = f"not {name.removeprefix('is_').replace('_', ' ')}"
        reason = f"{fault[:1].lower()}{fault[1:]}, got {shown(first['input'])}"
        raise ValueError(f"{where}: {field}: {reason}".removeprefix(": ")) from problem
    except (TypeError, RecursionError, UnicodeEncodeError) as problem:  # a date of YAML
        raise ValueError(f"{where}: cannot be JSON: {shown_text(problem)}") from problem


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_parquet(path: Path, schema: pa.Schema, *, rows: int | None = None) -> pa.Table:
    """Reads the columns of `schema` from a Parquet file; see `read_batches`."""
    return pa.Table.from_batches(read_batches(path, schema, rows=rows), schema)


def read_batches(
    path: Path,
    schema: pa.Schema,
    *,
    rows: int | None = None,
    most: int = MOST_TABLE,
    at_once: int = 1024,
) -> Iterator[pa.RecordBatch]:
    """Yields the columns of `schema` from a Parquet file in batches of rows.

    A few bytes of a file can expand to gigabytes: compressed or repeated values, or a long text in
    a dictionary. So sizes are checked in the footer before the file is read, and in memory
    afterwards. A footer that understates them costs one page, which Parquet limits to 2 GiB. Raises
    ValueError if the file is damaged, has other columns, types or number of rows, or expands to
    more than `most` bytes. A batch has at most `at_once` rows.
    """
    try:
        with pq.ParquetFile(require_file(path), pre_buffer=False) as file:
            if rows is not None and file.metadata.num_rows != rows:
                raise ValueError(f"it has {file.metadata.num_rows:,} rows, not {rows:,}")
            for wanted in schema:
                found = file.schema_arrow.field(wanted.name).type
                if found != wanted.type:
                    raise ValueError(f"its column {wanted.name} is {found}, not {wanted.type}")
            at_once = min(at_once, _rows_at_once(file.metadata, set(schema.names), most))
            size = 0
            for batch in file.iter_batches(at_once, columns=schema.names):
                size += batch.nbytes
                if size > most:
                    raise ValueError(f"it expands to more than {most:,} bytes")
                batch.validate(full=True)  # a text may not be UTF-8
                yield batch.select(schema.names).cast(schema)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, ValueError, KeyError, OSError) as problem:
        raise ValueError(f"{path} cannot be read: {shown_text(problem)}") from problem


def _rows_at_once(footer: pq.FileMetaData, names: set[str], most: int) -> int:
    """Returns how many rows fit into memory, by the sizes in a footer."""
    stated, longest = 0, 1
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            chunk = footer.row_group(group).column(number)
            column, _, inner = chunk.path_in_schema.partition(".")
            if column not in names:
                continue
            stated += max(chunk.total_uncompressed_size, 4 * chunk.num_values)
            if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY":
                # A value may be as long as the dictionary, and a list has many values in a row.
                if inner:
                    stated += chunk.total_uncompressed_size * chunk.num_values
                longest = max(longest, chunk.total_uncompressed_size)
    if stated > most:
        raise ValueError(f"it expands to {stated:,} bytes, and at most {most:,} are read")
    return max(1, most // (4 * longest))


def shown(value: object) -> str:
    """Returns a value for a message, on one line and of limited length."""
    return shown_text(_REPR.repr(value))


def shown_text(value: object, longest: int = _SHOWN) -> str:
    """Returns a text or an error's message on one line, printable and of limited length."""
    text = " ".join(str(value).split()) or type(value).__name__
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN
