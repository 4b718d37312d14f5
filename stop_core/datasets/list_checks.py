"""Checks of a list of clips: refusals of ambiguous classes, and remarks on likely mistakes."""

import html
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import ftfy
import regex
import yaml

from stop_core.datasets.clip import Clip, class_words
from stop_core.datasets.selecting import Selection
from stop_core.datasets.video_files import video_key

PUBLISHED_COUNTS = Path(__file__).with_name("published.yaml")
_NAMED = 5  # classes of a remark
_CLIP_WORD = regex.compile(r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def refuse_twins(names: Sequence[str], texts: Sequence[Hashable]) -> None:
    """Raises ValueError for classes with equal texts: words, sentences or token ids."""
    first: dict[Hashable, str] = {}
    for name, text in zip(names, texts, strict=True):
        if (other := first.setdefault(text, name)) is not name:
            raise ValueError(
                f"the classes {other!r} and {name!r} become the same text for CLIP, which then "
                "cannot tell them apart: rename one of them, or give their clips one class"
            )


def refuse_same_words(names: Sequence[str]) -> None:
    """Raises ValueError for class names that CLIP reads as the same words, or as none.

    Names that differ only by case are left to `remarks`: a method that reads no text, such as
    linear-probe, can be trained on them.
    """
    if wordless := [name for name in names if not as_clip_reads(name)]:
        raise ValueError(f"the class {wordless[0]!r} has no word that CLIP can read: rename it")
    kept = {(as_clip_reads(name), name.casefold()): name for name in names}
    refuse_twins(list(kept.values()), [words for words, _ in kept])


def as_clip_reads(name: str) -> tuple[str, ...]:
    """Returns the parts of a class name that CLIP's tokenizer, slow to import, encodes singly."""
    text = html.unescape(html.unescape(ftfy.fix_text(class_words(name))))
    return tuple(_CLIP_WORD.findall(text.lower()))


def remarks(dataset: str, fold: int, clips: Sequence[Clip], selection: Selection) -> list[str]:
    """Returns one sentence per likely mistake in the listed clips, and in the chosen ones."""
    by_split: dict[str, set[str]] = {split: set() for split in selection.splits}
    for clip in selection.clips:
        by_split[clip.split].add(clip.class_name)
    return [
        *_other_counts(dataset, fold, clips),
        *(f"the split {split} has no clips" for split, found in by_split.items() if not found),
        *one_sided(by_split),
        *_look_alikes(selection.class_names),
        *_shared_captions(selection.clips),
        *_alike_files(selection.clips),
    ]


def one_sided(classes: Mapping[str, Collection[str]]) -> list[str]:
    """Returns sentences on classes that only some splits have, given the classes by split."""
    sentences = []
    for one, other in (("test", "train"), ("val", "train"), ("train", "test")):
        here, there = set(classes.get(one, ())), set(classes.get(other, ()))
        if there and (only := sorted(here - there)):
            more = f" and {len(only) - _NAMED} more" if len(only) > _NAMED else ""
            sentences.append(
                f"{len(only)} of {len(here)} classes have clips in {one} and none in {other}: "
                f"{', '.join(only[:_NAMED])}{more}"
            )
    return sentences


def published_counts(dataset: str, fold: int) -> dict[str, Any]:
    """Returns the published counts of a fold by name; empty if none is known."""
    entries = yaml.safe_load(PUBLISHED_COUNTS.read_text(encoding="utf-8")).get(dataset, [{}])
    return cast(dict[str, Any], entries[min(fold, len(entries)) - 1])


def _other_counts(dataset: str, fold: int, clips: Sequence[Clip]) -> list[str]:
    counts: Counter[str] = Counter(clip.split for clip in clips)
    counts["train + val"] = counts["train"] + counts["val"]  # where validation is carved
    counts["classes"] = len({clip.class_name for clip in clips})
    others = []
    for count_name, published in published_counts(dataset, fold).items():
        known = published if isinstance(published, list) else [published]
        if counts[count_name] not in known:
            wanted = " or ".join(f"{count:,}" for count in known)
            others.append(f"{counts[count_name]:,} {count_name}, published {wanted}")
    if not others:
        return []
    return [f"the lists are not those that {dataset} is published with ({'; '.join(others)})"]


def _look_alikes(names: Sequence[str]) -> list[str]:
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        alike[as_clip_reads(name)].append(name)
    return [
        f"the classes {' and '.join(map(repr, group))} differ only by case: most CLIPs read them "
        "as one, and a training whose method reads texts will then refuse them"
        for group in alike.values()
        if len(group) > 1
    ]


def _shared_captions(clips: Sequence[Clip]) -> list[str]:
    """A caption of two test clips has two right answers, of which only one counts."""
    captions = [{one.casefold() for one in c.captions} for c in clips if c.split == "test"]
    shared = [caption for caption, count in Counter(chain(*captions)).items() if count > 1]
    if not shared:
        return []
    return [
        f"captions of several test clips: {len(shared)}, for example {shared[0]!r}; recall at 1 "
        "cannot reach 100%"
    ]


def _alike_files(clips: Sequence[Clip]) -> list[str]:
    first: dict[str, str] = {}
    alike = {
        clip.path: of
        for clip in clips
        if (of := first.setdefault(video_key(clip.path), clip.path)) != clip.path
    }
    if not alike:
        return []
    path, of = next(iter(alike.items()))
    return [
        f"files that differ only by extension: {len(alike)}, such as {path} of {of}; each counts "
        "as a clip"
    ]
