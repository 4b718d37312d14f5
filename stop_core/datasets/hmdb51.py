"""HMDB51: 51 human actions, 6766 clips, three official folds.

The layout that the official archives unpack to:

    <root>/hmdb51_org/<class>/<name>.avi
    <root>/testTrainMulti_7030_splits/<class>_test_split<fold>.txt

A line of a split file is `<name>.avi <code>`, the code being 0 (unused in this fold), 1 (training)
or 2 (test). Official test clips stay test clips; validation is carved from training.
"""

import re
from pathlib import Path

from stop_core.datasets.annotations import class_label, read_lines, safe_name
from stop_core.datasets.clip import NO_LABEL, Clip, Split
from stop_core.datasets.data_root import DataRoot, number_classes
from stop_core.datasets.validation_split import carve_validation

HMDB51_VIDEOS = "hmdb51_org"
HMDB51_SPLITS = "testTrainMulti_7030_splits"
_CODES: dict[str, Split | None] = {"0": None, "1": "train", "2": "test"}


def read_hmdb51(root: Path, fold: int = 1) -> list[Clip]:
    """Lists the clips of fold 1, 2 or 3 by class; labels index the sorted class names."""
    ending = f"_test_split{fold}.txt"
    layout = f"{HMDB51_VIDEOS}/<class>/*.avi and {HMDB51_SPLITS}/<class>{ending}"
    data = DataRoot(root, layout, HMDB51_VIDEOS)
    data.require_folder(HMDB51_SPLITS)
    lists = sorted(
        (path.name.removesuffix(ending), path)
        for path in (root / HMDB51_SPLITS).glob(f"*{ending}")
        if not path.name.startswith(".")
    )
    if not lists:
        raise FileNotFoundError(
            f"{root / HMDB51_SPLITS} holds no split file of fold {fold} (<class>{ending}): "
            "unpack test_train_splits.rar there, or choose another --fold"
        )
    for folder, path in lists:
        class_name = class_label(folder, str(path))
        for where, line in read_lines(path):
            fields = line.split()
            if len(fields) != 2 or fields[1] not in _CODES:
                raise ValueError(
                    f"{where}: expected '<file name> <0, 1 or 2>', found {line.strip()!r}; "
                    "unpack the split files afresh"
                )
            name, split = safe_name(fields[0], where), _CODES[fields[1]]
            file = data.files.at(f"{HMDB51_VIDEOS}/{folder}/{name}") if split else ""
            stem = Path(name).stem
            v, source = f"{class_name}/{stem}", source_video(stem, class_name)
            clip = Clip(v, file, split or "train", NO_LABEL, class_name, source)
            data.add(clip, where, name=f"{class_name}/{name}", unused=split is None)
    return carve_validation(number_classes(data.finish()))


def source_video(stem: str, class_name: str) -> str:
    """Returns the source video of a clip, for example of `April_09_brush_hair_u_nm_np1_ba_goo_0`.

    HMDB51 names read `<source>_<class>_<visible>_<camera>_np<people>_<view>_<quality>_<number>`.
    """
    tail = rf"_{re.escape(class_name)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+"
    match = re.fullmatch(rf"(.+){tail}", stem)
    return match[1] if match else stem
