"""Mutates untrusted folders at random and checks how they are read.

    python tests/security/fuzz.py --mutants 500 [KIND ...]

Every mutant has to be read, or refused with a ValueError or OSError of one line, within the
deadline. Nothing outside its folder may change, the network may not be used, and no file may be
read whose checksum differs.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stop_core.cache.files import CHECKSUM, write_checked_json
from stop_core.storage.atomic import SUMS, write_sums
from stop_core.trained_model.files import CARD
from tests.security.strangers import KINDS, files_of

DEADLINE = 60
LONGEST_MESSAGE = 2000
NAMES: tuple[Any, ...] = (
    *("", ".", "..", "../x", "a/../../x", "/etc/x", "a//x", "a/", "./x", "~/x", "a\\..\\x"),
    *("a\0b", "a\nb", "a\x1b[2Jb", "\x85", "x" * 300, "x/" * 3000, "\ud800", "\u202ex"),
)
"""Names that lead outside a folder, or are invalid."""
VALUES: tuple[Any, ...] = (
    *(*NAMES, None, True, False, 0, -1, 1, 0.5, -0.0, 2**31, 2**63, 10**18, 10**400, 1e308),
    *(float("nan"), float("inf"), [], {}, [[]], {"a": {}}, "1", "NaN", "a" * 64, "{}", ["x"]),
    *([0] * 1000, {"x": None}, "2024-01-01", "=1+1", "file:///etc/x"),
)
"""Values of every type, at the ends of their ranges and beyond."""

Mutation = Callable[[random.Random, Path, Path], None]


def mutate_bytes(rng: random.Random, file: Path, outside: Path) -> None:
    """Changes, removes, repeats or inserts some bytes."""
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 4, 64, 4096)))
    match rng.randrange(5):
        case 0:
            for _ in range(rng.choice((1, 10, 100)) if data else 0):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:]
        case 2:
            data[start:end] = bytes(end - start)
        case 3:
            data[start:start] = data[start:end] * rng.choice((1, 100))
        case 4:
            data[start:end] = rng.randbytes(end - start)
    file.write_bytes(data)


def mutate_file(rng: random.Random, file: Path, outside: Path) -> None:
    """Replaces a file or its folder."""
    match rng.randrange(7):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(b"")
        case 2:
            file.unlink()
            file.mkdir()
        case 3:
            file.unlink()
            os.mkfifo(file)
        case 4:
            file.unlink()
            file.symlink_to(outside / "victim")
        case 5:
            lock = file.with_name(".lock")
            lock.unlink(missing_ok=True)
            lock.symlink_to(outside / "victim")
        case 6 if file.parent.name != "thing":  # the given folder itself can be a link
            shutil.rmtree(file.parent)
            file.parent.symlink_to(outside / "folder")


def mutate_document(rng: random.Random, file: Path, outside: Path) -> None:
    """Changes a value of a JSON or YAML file, and updates its checksum."""
    text = file.read_text()
    is_yaml = file.suffix == ".yaml"
    value = yaml.safe_load(text) if is_yaml else json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 3))):
        _change(rng, value)
    if not is_yaml and isinstance(value, dict) and value.pop(CHECKSUM, None) is not None:
        write_checked_json(file, value)
        return
    dumped = json.dumps(value)
    if rng.random() < 0.1:
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        depth = rng.choice((50, 70, 900, 100_000))
        dumped = opening * depth + dumped + closing * depth
    file.write_text(dumped)


def _change(rng: random.Random, value: Any) -> None:
    """Changes a random inner value, or its name."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        match rng.randrange(6):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice([one for one in NAMES])] = value.pop(key)
            case 2 if isinstance(value, list):
                value += [value[key]] * rng.choice((1, 1000))
            case _:
                value[key] = rng.choice(VALUES)
        return


def mutate_table(rng: random.Random, file: Path, outside: Path) -> None:
    """Changes a column of a Parquet file: its type, a value, its name, or the number of rows."""
    table = pq.read_table(file)
    number = rng.randrange(table.num_columns)
    name, rows = table.schema.names[number], table.to_pylist()
    metadata = table.schema.metadata or {}
    match rng.randrange(6):
        case 0:
            table = table.drop_columns([name])
        case 1:
            column = pa.array([rng.choice(("x", "../x", "a//b")) for _ in rows])
            table = table.set_column(number, name, column)
        case 2:
            table = table.set_column(number, name, pa.array([2**40 + i for i in range(len(rows))]))
        case 3:
            table = pa.concat_tables([table] * rng.choice((2, 1000)))
        case 4:
            table = table.rename_columns([n if n != name else "x" for n in table.schema.names])
        case 5 if b"stop.index" in metadata:
            value = json.loads(metadata[b"stop.index"])
            _change(rng, value)
            metadata = {**metadata, b"stop.index": json.dumps(value).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), file, use_dictionary=rng.random() < 0.5)


def mutate_lines(rng: random.Random, file: Path, outside: Path) -> None:
    """Writes a hostile name into a list or a table."""
    lines = file.read_text().split("\n")
    at = rng.randrange(len(lines))
    sign = rng.choice(" ,;\t/")
    words = lines[at].split(sign)
    words[rng.randrange(len(words))] = str(rng.choice(VALUES))
    lines[at] = sign.join(words)
    if rng.random() < 0.1:
        lines += lines * 100
    file.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")


def mutate_pickle(rng: random.Random, file: Path, outside: Path) -> None:
    """Changes a value of a pickle, or adds instructions that allocate a lot."""
    value = pickle.loads(file.read_bytes())
    _change(rng, value)
    data = pickle.dumps(value, protocol=rng.randrange(6))
    if rng.random() < 0.3:
        data = b"\x80\x04" + rng.choice((b"Nr\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"(" * 9**5))
    file.write_bytes(data)


def _ways(file: Path) -> list[Mutation]:
    known: dict[str, Mutation] = {
        **dict.fromkeys((".json", ".yaml"), mutate_document),
        **dict.fromkeys((".txt", ".csv", ".tsv"), mutate_lines),
        ".parquet": mutate_table,
        ".pkl": mutate_pickle,
    }
    special = [known[file.suffix]] * 3 if file.suffix in known and file.stat().st_size else []
    return [mutate_bytes, mutate_file, *special]


def sign(folder: Path) -> bool:
    """Updates the checksums of a model or checkpoint; returns False if it has none."""
    if not (folder / SUMS).is_file():
        return False
    if all(path.is_file() and not path.is_symlink() for path in folder.iterdir()):
        write_sums(folder, without=[CARD])
    return True


def summed(folder: Path) -> list[tuple[str, bytes]]:
    """Returns the files that have a checksum, with their content."""
    if not (folder / SUMS).is_file():
        return []
    files = [path for path in folder.iterdir() if path.name not in (SUMS, CARD, ".lock")]
    return sorted((path.name, path.read_bytes() if path.is_file() else b"") for path in files)


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Returns size, mtime and hash of every file of a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (status.st_mtime_ns, status.st_size, content)
    return found


@contextmanager
def guarded() -> Iterator[None]:
    """Raises for any connection, and after the deadline."""

    def refuse(*_: object) -> None:
        raise RuntimeError("the network was asked")

    def late(*_: object) -> None:
        raise RuntimeError(f"it took more than {DEADLINE} seconds")

    names = ("connect", "connect_ex", "bind")
    before = {name: getattr(socket.socket, name) for name in names}
    handler = signal.signal(signal.SIGALRM, late)
    for name in names:
        setattr(socket.socket, name, refuse)
    signal.alarm(DEADLINE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        for name in names:
            setattr(socket.socket, name, before[name])


def fuzz(
    kind: str, work: Path, made: Path, mutants: int, seed: int
) -> tuple[Counter[str], list[str]]:
    """Reads mutants of one kind; returns the outcomes and the faults.

    Args:
        kind: one of `KINDS`.
        work: an empty folder.
        made: a folder with one of the kind as `thing`, and the files that it needs.
        mutants: their number.
        seed: of the random choices.
    """
    _, read = KINDS[kind]
    outside = work / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "victim").write_text("precious")
    for number in range(3):  # named like a staging file, a checkpoint and a record
        name = (".a.0123abcd.tmp", "checkpoint_000001", "00-file.json")[number]
        (outside / "folder" / name).write_text("precious")
    before = snapshot(outside)
    ends, faults = Counter[str](), []
    for number in range(mutants):
        rng = random.Random(f"{kind} {seed} {number}")
        inner = work / "inner"
        shutil.rmtree(inner, ignore_errors=True)
        shutil.copytree(made, inner)
        files = list(files_of(inner / "thing"))  # most videos of the annotations are empty
        file = rng.choice([f for f in files if f.stat().st_size or rng.random() < 0.01])
        way = rng.choice(_ways(file))
        way(rng, file, outside)
        # An attacker can update a checksum; accidental damage does not.
        signed = rng.random() < 0.5 and sign(inner / "thing")
        about = f"{kind} {seed} {number}: {way.__name__} {file.relative_to(inner)}"
        end = "read"
        try:
            with guarded():
                read(inner / "thing")
        except (ValueError, OSError) as problem:
            end = "refused"
            if "\n" in str(problem).strip() or len(str(problem)) > LONGEST_MESSAGE:
                faults.append(f"{about}: not one sentence: {str(problem)[:300]!r}")
        except Exception as problem:
            end = type(problem).__name__
            faults.append(f"{about}:\n{''.join(traceback.format_exception(problem)[-6:])}")
        ends[end] += 1
        if end == "read" and not signed and summed(inner / "thing") != summed(made / "thing"):
            faults.append(f"{about}: changed data was read")
        if snapshot(outside) != before:
            faults.append(f"{about}: something outside has changed")
            before = snapshot(outside)
        strange = {path.name for path in work.iterdir()} - {"inner", "outside"}
        strange |= {p.name for p in inner.iterdir()} - {"thing", "videos", "output"}
        if strange:
            faults.append(f"{about}: {strange} appeared outside")
            for name in strange:
                shutil.rmtree(work / name, ignore_errors=True)
    return ends, faults


def main() -> None:
    """Fuzzes, and prints the outcomes and the faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--mutants", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    from tests.conftest import video_writer

    failed = False
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            (work / "made").mkdir()
            make, _ = KINDS[kind]
            if kind in ("manifest", "job"):
                make(work / "made" / "thing", video_writer())
            else:
                make(work / "made" / "thing")
            (work / "run").mkdir()
            started = time.monotonic()
            ends, faults = fuzz(kind, work / "run", work / "made", options.mutants, options.seed)
        print(f"{kind}: {dict(ends)} in {time.monotonic() - started:.0f} s, {len(faults)} faults")
        for fault in faults:
            print(f"  {fault}")
        failed |= bool(faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
