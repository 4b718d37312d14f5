"""Untrusted JSON, YAML and Parquet take limited memory; an invalid file is one sentence."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated_types import Interval

from stop_core.storage.documents import (
    DEEPEST,
    MOST_YAML,
    Finite,
    Name,
    Number,
    Sha256,
    build,
    parse_json,
    parse_yaml,
    read_parquet,
    read_text,
)

ROOT = Path(__file__).resolve().parents[3]


def bomb(levels: int = 9, width: int = 9) -> str:
    """Returns a YAML text of a few hundred characters that expands to `width ** levels` values."""
    lines = ["a0: &a0 [lol]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * width)}]")
    return "\n".join(lines)


def megabytes_of(code: str, *arguments: str, limit: int = 4 << 30) -> tuple[float, str]:
    """Runs Python with limited address space; returns the peak that it prints, and other output."""
    program = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
{code}
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        },
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, peak = done.stdout.splitlines()
    return float(peak), "\n".join(lines)


def refusal_of(call: str, path: Path, limit: int = 4 << 30) -> tuple[float, str]:
    """Returns the megabytes that a call takes in addition to its imports, and its error message."""
    imports, _, call = call.rpartition(";")
    return megabytes_of(
        f"""
from pathlib import Path
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print("read", {call})
except (ValueError, OSError) as problem:
    print(problem)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
""",
        str(path),
        limit=limit,
    )


def _nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("depth", [DEEPEST, 500, 990, 5000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_json_is_refused_in_one_sentence(depth: int, opening: str, closing: str) -> None:
    with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels"):
        parse_json(_nested(opening, closing, depth))
    value = parse_json(_nested(opening, closing, DEEPEST - 1))
    assert json.dumps(value) == _nested(opening, closing, DEEPEST - 1).replace(":", ": ")


@pytest.mark.parametrize("text", ["", "{", "[1,]", '"\\ud8', "nul", "9" * 5000, "\ud800"])
def test_invalid_json_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        parse_json(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        *(_nested("[", "]", depth) for depth in (DEEPEST, 500, 5000, 100_000)),
        *("- " * 5000, "? " * 5000, "{a: " * 5000),
        *(bomb(levels) for levels in (7, 9, 30)),
        f"a: &a {'x' * 5000}\nb: [{','.join(['*a'] * 5000)}]",
        *("&a [*a]", "a: &a {b: *a}", "a: &a\n  <<: *a"),
        *(
            "!!int ''",
            "!!int x",
            "!!float x",
            "!!timestamp x",
            "!!bool x",
            "!!binary é",
            "2001-99-99",
        ),
        *("? [a]\n: b", "? {a: b}\n: c", "!!python/object/apply:os.getcwd []", "!x y", "a: b: c"),
        *("9" * 5000, "[", "'", "\x00", "a\n---\nb", "*a", "%YAML 3", "\t"),
        *("x" * (MOST_YAML + 1), "# " + "x" * (MOST_YAML + 1)),
    ],
    ids=lambda text: ascii(text)[1:20],
)
def test_hostile_yaml_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^line \d+: this is not YAML|^it has ") as refusal:
        parse_yaml(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_small_aliases_are_read() -> None:
    text = "base: &base {n_s: 3, eta: 2}\nrows: [{<<: *base, eta: 4}, *base]\n"
    assert parse_yaml(text)["rows"] == [{"n_s": 3, "eta": 4}, {"n_s": 3, "eta": 2}]


def test_yaml_keeps_its_types() -> None:
    text = "a: 1\nb: 1.5\nc: [x, null, true]\nd: 'no'\n"
    assert parse_yaml(text) == {"a": 1, "b": 1.5, "c": ["x", None, True], "d": "no"}
    assert parse_yaml("") is None


def test_text_is_read_up_to_its_limit_and_from_regular_files_only(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("four")
    assert read_text(path, 4) == "four"
    with pytest.raises(ValueError, match="too large: 4 bytes, and the limit is 3"):
        read_text(path, 3)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_text(path)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # without using disk space
    with pytest.raises(ValueError, match="the limit is"):
        read_text(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_text(Path("/dev/zero"))


@dataclass(frozen=True)
class _Inner:
    name: Name
    rows: Annotated[int, Interval(ge=1, le=64)]


@dataclass(frozen=True)
class _Outer:
    inner: tuple[_Inner, ...]
    kind: Literal["a", "b"] = "a"
    hash: Sha256 | None = None
    share: Finite = 0.5
    numbers: dict[str, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.share == 7:
            raise ValueError("share cannot be 7")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], "the whole"),
        ({}, "inner: field required"),
        ({"inner": {}}, "inner"),
        ({"inner": [{"name": "a"}]}, r"inner\.0\.rows: field required"),
        ({"inner": [{"name": "../a", "rows": 1}]}, r"inner\.0\.name: not the name of a file"),
        ({"inner": [{"name": "a", "rows": 0}]}, r"inner\.0\.rows: .*greater than or equal to 1"),
        ({"inner": [{"name": "a", "rows": 10**30}]}, r"inner\.0\.rows"),
        ({"inner": [{"name": "a", "rows": True}]}, r"inner\.0\.rows"),
        ({"inner": [{"name": "a", "rows": 1.0}]}, r"inner\.0\.rows"),
        ({"inner": [{"name": "a", "rows": "1"}]}, r"inner\.0\.rows"),
        ({"inner": [], "kind": "c"}, "kind: input should be 'a' or 'b', got 'c'"),
        ({"inner": [], "hash": "A" * 64}, "hash.*: not a sha256"),
        ({"inner": [], "share": float("nan")}, "share: not finite, got nan"),
        ({"inner": [], "share": 10**400}, "share: not finite"),
        ({"inner": [], "share": 7}, "share cannot be 7"),
        ({"inner": [], "other": 1}, "other: unexpected"),
        ({"inner": [], "numbers": {"a": "1"}}, "numbers.a"),
        ({"inner": [], "numbers": {"a": "x" * 10**6}}, "numbers.a"),
        ({"inner": [], "kind": "a\n\x1b[1m"}, "kind"),
        ({"inner": {1, 2}}, "JSON"),
    ],
)
def test_wrong_field_is_named_with_its_file(values: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"^file: .*{found}") as refusal:
        build(_Outer, values, "file")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_valid_fields_keep_their_values() -> None:
    numbers = {"epoch": 3, "top1": 0.5, "nan": float("nan")}
    made = build(_Outer, {"inner": [{"name": "a", "rows": 64}], "numbers": numbers})
    assert made.inner == (_Inner("a", 64),)
    assert json.dumps(made.numbers) == json.dumps(numbers)


SCHEMA = pa.schema([pa.field("a", pa.string(), nullable=False)])


def _one_value_many_times(path: Path, value: str, rows: int) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array([value]))
    table = pa.table({"a": pa.chunked_array([column] * (rows // 1000))})
    pq.write_table(table, path, compression="zstd", store_schema=False, row_group_size=rows)


_IMPORTS = (
    "import pyarrow as pa; from stop_core.storage.documents import read_batches, read_parquet; "
)
_WANTED = "pa.schema([pa.field('a', pa.string(), nullable=False)])"


@pytest.mark.parametrize(
    ("value", "rows", "call"),
    [
        ("x", 20_000_000, f"read_parquet(Path(sys.argv[1]), {_WANTED}, rows=64)"),
        ("x" * 1000, 3_000_000, f"sum(map(len, read_batches(*given, {_WANTED}, most=1 << 28)))"),
        ("x" * 1_000_000, 10_000, f"sum(map(len, read_batches(*given, {_WANTED}, most=1 << 28)))"),
    ],
)
def test_small_table_that_expands_to_gigabytes_is_refused(
    value: str, rows: int, call: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    _one_value_many_times(path, value, rows)
    assert path.stat().st_size < 5_000_000
    call = call.replace("*given", "Path(sys.argv[1])")
    peak, message = refusal_of(f"{_IMPORTS}{call}", path, limit=8 << 30)
    assert "cannot be read" in message
    assert peak < 400


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [1]}),
        pa.table({"a": [["x"]]}),
        pa.table({"a": [None]}),
        pa.table({"a": pa.array([None], pa.string())}),
        pa.table({"a": pa.array([b"\xff"]).cast(pa.binary()).view(pa.string())}),
        pa.table({"b": ["x"]}),
        pa.table({"a": ["x", "y"]}),
    ],
)
def test_unexpected_schema_is_refused(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        read_parquet(tmp_path / "a.parquet", SCHEMA, rows=1)
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet", SCHEMA, rows=1).to_pydict() == {"a": ["x"]}


def test_truncated_table_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [f"text {i}" for i in range(100)]}), path, compression="none")
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read") as refusal:
            read_parquet(path, SCHEMA)
        assert "\n" not in str(refusal.value)
