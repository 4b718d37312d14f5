"""`preprocess.py --check`: is every listed video there? Nothing is decoded, no cache is written."""

from collections import Counter
from pathlib import Path

from pipelines.command_line import RunError
from stop_core.cache.files import appearing
from stop_core.datasets import Selection, missing_clips

_NAMED = 5  # of the missing videos, before the list in the file


def check_files(selection: Selection, root: Path, report: Path) -> str:
    """Compares a selection of clips with the files below the data root, folder by folder.

    Args:
        selection: the clips that the annotation lists.
        root: the data root.
        report: the file to write the missing ones to, `split<tab>path` a line.

    Returns:
        What the user reads: how many clips of each split are there.

    Raises:
        RunError: if one is missing; the message has the same, the first names and the report.
    """
    missing = missing_clips(root, selection.clips)
    listed = Counter(clip.split for clip in selection.clips)
    gone = Counter(clip.split for clip in missing)
    counts = ", ".join(
        f"{listed[split] - gone[split]} of {listed[split]} {split}" for split in selection.splits
    )
    told = f"{counts} clips are below {root}"
    if not missing:
        report.unlink(missing_ok=True)  # an earlier check's
        return f"complete  {told}"
    report.parent.mkdir(parents=True, exist_ok=True)
    with appearing(report) as staging:
        lines = (f"{clip.split}\t{clip.path}\n" for clip in missing)
        staging.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    names = ", ".join(clip.path for clip in missing[:_NAMED])
    raise RunError(
        f"{len(missing)} listed clips are missing: {told}. Missing are {names}"
        f"{' and more' if len(missing) > _NAMED else ''}; all of them are listed in {report}"
    )
