"""SHA-256 of every file of a folder, in the format of `sha256sum`: `sha256sum -c SHA256SUMS`.

They reveal corruption and edits, not the origin: write access to a file implies access to its sum.
"""

from collections.abc import Collection
from pathlib import Path

from stop_core.storage.atomic import hash_file, write_whole
from stop_core.storage.documents import read_text, shown
from stop_core.storage.names import is_the_name_of_a_file

SUMS = "SHA256SUMS"


def write_sums(folder: Path, without: Collection[str] = ()) -> None:
    """Writes the sums of all files in a folder, except those named in `without`."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in (SUMS, *without))
    lines = [f"{hash_file(folder / name)}  {name}\n" for name in names]
    write_whole(folder / SUMS, "".join(lines))


def check_sums(folder: Path, names: Collection[str]) -> None:
    """Compares `names`, and all other files that have a sum, with their sums.

    Raises:
        FileNotFoundError: if a file or the list of the sums is missing.
        ValueError: if a file differs, or has no sum.
    """
    lines = read_text(folder / SUMS).splitlines()
    sums = {name: found for found, _, name in (line.partition("  ") for line in lines)}
    for name in sorted({*names, *sums}):
        if name not in sums or not is_the_name_of_a_file(name):
            raise ValueError(f"{folder / SUMS} is damaged: it has no sum of {shown(name)}")
        if sums[name] != hash_file(folder / name):
            raise ValueError(f"{folder / name} is not as it was written, by its sum in {SUMS}")
