"""The official lists of HMDB51 and UCF101 with tiny clips under every real name.

    python tests/pipelines/real_lists.py ../shared/data/annotations

Every clip of HMDB51's split files is a link to one of a few tiny videos; fold 1 is preprocessed
whole, twice, and counted. UCF101's lists are checked against as many names. Minutes, so no test.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stop_core.cache import FrameCache
from tests.pipelines.chaos import SCRIPT, write_clip


def _linked(names: set[str], folder: Path) -> None:
    """Links every name to one of eight tiny clips of its extension."""
    made: dict[str, list[Path]] = {}
    for number, name in enumerate(sorted(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        few = made.setdefault(path.suffix, [])
        if len(few) < 8:
            write_clip(path, seed=number)
            few.append(path)
        else:
            os.link(few[number % 8], path)


def _run(*options: str) -> tuple[float, str]:
    began = time.monotonic()
    result = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"exit code {result.returncode}:\n{result.stdout}{result.stderr}")
    return time.monotonic() - began, result.stdout


def hmdb51(annotations: Path, folder: Path) -> None:
    """Preprocesses fold 1 of HMDB51 and compares the counts with the official ones."""
    splits = folder / "testTrainMulti_7030_splits"
    splits.mkdir(parents=True)
    names, codes = set(), {"0": 0, "1": 0, "2": 0}
    for file in sorted(annotations.glob("*_test_split1.txt")):
        (splits / file.name).write_bytes(file.read_bytes())
        for line in file.read_text().splitlines():
            name, code = line.split()
            names.add(f"{file.name.removesuffix('_test_split1.txt')}/{name}")
            codes[code] += 1
    _linked(names, folder / "hmdb51_org")
    assert codes == {"0": 1666, "1": 3570, "2": 1530}, codes
    options = ["--dataset", "hmdb51", "--data-root", str(folder), "--output", str(folder / "out")]
    print(_run(*options, "--check")[1].strip())
    options += ["--cache", str(folder / "cache"), "--frames", "4", "--size", "16"]
    seconds, told = _run(*options)
    print(told, end="")
    cache = FrameCache(folder / "cache")
    counts = cache.manifest.counts
    assert (counts["train"] + counts["val"], counts["test"]) == (3570, 1530), counts
    ids = [name for split in counts for name in cache.split(split).video_ids]
    assert len(set(ids)) == len(ids) == 5100, "no clip twice"
    again, _ = _run(*options)
    print(f"HMDB51, fold 1: {seconds:.0f} s for 5100 of {len(names)} clips; again: {again:.1f} s")


def ucf101(annotations: Path, folder: Path) -> None:
    """Checks the clips of UCF101's fold 1."""
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    names = set()
    for file in annotations.glob("*.txt"):
        (lists / file.name).write_bytes(file.read_bytes())
        if file.name in ("trainlist01.txt", "testlist01.txt"):
            names |= {line.split()[0] for line in file.read_text().splitlines() if line.strip()}
    _linked(names, folder / "UCF-101")
    seconds, told = _run(
        *("--dataset", "ucf101", "--data-root", str(folder), "--check"),
        *("--output", str(folder / "out")),
    )
    assert len(names) == 9537 + 3783, len(names)
    print(f"{told.strip()}\nUCF101, fold 1: checked in {seconds:.1f} s")


def main(annotations: Path) -> None:
    """Runs both."""
    with tempfile.TemporaryDirectory() as folder:
        hmdb51(annotations / "hmdb51", Path(folder) / "hmdb51")
        ucf101(annotations / "ucf101", Path(folder) / "ucf101")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
