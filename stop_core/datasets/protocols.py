"""The clips and classes that a protocol chooses: few-shot draws and lists, base classes."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from stop_core.datasets.clip import class_words
from stop_core.datasets.video_files import video_key
from stop_core.settings.protocol import ProtocolConfig
from stop_core.storage.documents import shown


def draw_shots(
    video_ids: Sequence[str], labels: Sequence[int], shots: int, seed: int
) -> tuple[list[int], list[int]]:
    """Draws `shots` clips of each class; all clips of a class that has fewer.

    The laws: a draw depends only on the seed and on the videos of the class, not on the order of
    the clips, the numbers of the classes or the other classes; and it contains all smaller draws.
    Returns the numbers of the clips, in their order, and the classes with fewer clips than `shots`.
    """
    of_class: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for clip, (video, label) in enumerate(zip(video_ids, labels, strict=True)):
        of_class[label].append((_rank(seed, video), clip))
    drawn = [clip for ranked in of_class.values() for _, clip in sorted(ranked)[:shots]]
    few = sorted(label for label, ranked in of_class.items() if len(ranked) < shots)
    return sorted(drawn), few


def find_listed(video_ids: Sequence[str], listed: Sequence[str]) -> tuple[list[int], list[str]]:
    """Finds the clips of a list of videos, by their ids or by file names without a folder.

    Returns the numbers of the clips, in their order, and the listed videos without a clip. Raises
    ValueError if the name of a listed file is that of several clips.
    """
    whole, names = defaultdict(set), defaultdict(set)
    for clip, video in enumerate(video_ids):
        whole[video_key(video)].add(clip)
        names[video_key(video.rpartition("/")[2])].add(clip)
    found, absent = set(), []
    for video in listed:
        key = video_key(video)
        clips = whole.get(key) or names.get(key.rpartition("/")[2], set())
        if len(clips) > 1:
            raise ValueError(
                f"the listed video {shown(video)} is the name of {len(clips)} clips; list them by "
                f"their ids, such as {shown(video_ids[min(clips)])}"
            )
        found |= clips
        if not clips:
            absent.append(video)
    return sorted(found), absent


def base_labels(class_names: Sequence[str], protocol: ProtocolConfig) -> list[int]:
    """Returns the labels of the base classes, sorted; the other classes are the novel ones.

    They are the listed ones, else a half that `base_seed` draws, else the first half. If the number
    of classes is odd, the base classes are one more.
    """
    labels = {class_words(name).lower(): label for label, name in enumerate(class_names)}
    half = (len(class_names) + 1) // 2
    if protocol.base_classes:
        words = {class_words(name).lower(): name for name in protocol.base_classes}
        if unknown := [name for key, name in words.items() if key not in labels]:
            raise ValueError(
                f"base_classes has {shown(unknown[0])}, which is no class of this cache; it has "
                f"{shown(', '.join(class_names))}"
            )
        base = {labels[key] for key in words}
    elif (seed := protocol.base_seed) is not None:
        ranked = sorted(labels, key=lambda words: _rank(seed, words))
        base = {labels[words] for words in ranked[:half]}
    else:
        base = set(range(half))
    if not 0 < len(base) < len(class_names):
        raise ValueError(
            f"base-to-novel needs base and novel classes, and {len(base)} of {len(class_names)} "
            "classes would be base classes; leave classes out, or choose others by base_classes"
        )
    return sorted(base)


def _rank(seed: int, name: str) -> str:
    """Returns the place of a name in the random order of a seed, whatever other names there are."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
