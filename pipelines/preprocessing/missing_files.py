"""`preprocess.py --check`: counts missing videos without decoding or caching any."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stop_core.datasets import Clip, Selection, missing_clips
from stop_core.storage.atomic import appearing

_NAMED = 5  # missing videos that a message names; the report lists all


def check_files(selection: Selection, root: Path, report: Path) -> tuple[str, str]:
    """Compares a selection of clips with the files below the data root, folder by folder.

    Args:
        selection: the clips that the annotation lists.
        root: the data root.
        report: the file that lists the missing clips, one `split<tab>path` per line.

    Returns:
        A table of the splits, and an error message, empty if no video is missing.
    """
    missing = missing_clips(root, selection.clips)
    table = _table(selection, missing)
    if not missing:
        report.unlink(missing_ok=True)  # left by an earlier check
        return table, ""
    report.parent.mkdir(parents=True, exist_ok=True)
    with appearing(report) as staging:
        lines = (f"{clip.split}\t{clip.path}\n" for clip in missing)
        staging.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    names = ", ".join(clip.path for clip in missing[:_NAMED])
    return table, (
        f"{len(missing)} of {len(selection.clips)} listed clips are missing below {root}: {names}"
        f"{' and more' if len(missing) > _NAMED else ''}; all of them are listed in {report}"
    )


def _table(selection: Selection, missing: Sequence[Clip]) -> str:
    """Returns a table: listed clips, missing clips, and classes or captions, by split."""
    listed = Counter(clip.split for clip in selection.clips)
    gone = Counter(clip.split for clip in missing)
    unit = "classes" if selection.class_names else "captions"
    lines = [f"{'split':<6}{'clips':>10}{'missing':>10}{unit:>10}"]
    for split in selection.splits:
        clips = [clip for clip in selection.clips if clip.split == split]
        classes = len({clip.class_name for clip in clips})
        count = classes if selection.class_names else sum(len(clip.captions) for clip in clips)
        lines.append(f"{split:<6}{listed[split]:>10,}{gone[split]:>10,}{count:>10,}")
    return "\n".join(lines)
