"""Own videos in folders named by their class, with or without folders for the splits.

    <root>/train/<class>/*.mp4, <root>/val/<class>/*.mp4, <root>/test/<class>/*.mp4

or, if all videos are for training,

    <root>/<class>/*.mp4

If there is no val, it is carved from training. `csv_file` also reads captions, and the longer video
that a clip was cut from.
"""

from pathlib import Path

from stop_core.datasets.annotations import class_label
from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip, Split
from stop_core.datasets.data_root import DataRoot, number_classes
from stop_core.datasets.validation_split import with_validation
from stop_core.datasets.video_files import video_key

_LAYOUT = "train/<class>/*.mp4 and test/<class>/*.mp4, or <class>/*.mp4"


def read_folder(root: Path) -> list[Clip]:
    """Lists the videos below a folder by class and name; labels index the sorted class names."""
    files = DataRoot(root, _LAYOUT).files.paths
    if not files:
        raise ValueError(f"there is no video below {root}: it should hold {_LAYOUT}")
    has_splits = (root / "train").is_dir()
    split_of: dict[str, Split] = {split: split for split in SPLITS}
    clips: list[Clip] = []
    sources: dict[str, str] = {}
    for path in files:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name {path!r} below {root} is not in UTF-8: rename it") from None
        first, _, rest = path.partition("/")
        split = split_of.get(first) if has_splits else "train"
        class_name, _, name = (rest if has_splits else path).partition("/")
        if split is None:
            raise ValueError(
                f"{root} holds a folder train, so {first} should be one of {', '.join(SPLITS)}: "
                f"move {path} elsewhere"
            )
        if not name:
            raise ValueError(f"{root / path} is in no folder of a class: {root} needs {_LAYOUT}")
        label = class_label(class_name, str(root / path))
        # a.mov and a.mp4 may be one video, and stay in one split.
        source = sources.setdefault(video_key(path), path)
        clips.append(Clip(path, path, split, NO_LABEL, label, source))
    return with_validation(number_classes(clips))
