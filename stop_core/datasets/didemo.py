"""DiDeMo for paragraph-to-video retrieval: 10,464 videos from Flickr, with about 4 sentences each.

The official annotations, and the videos anywhere below the root:

    <root>/train_data.json, val_data.json, test_data.json   [{"video", "description", "times", ...}]
    <root>/videos/<video>      also <video>.mp4, as the official script saves them, or converted

All descriptions of a video, joined in the order of the file, are its one caption. Annotators saw
the first 30 seconds of a video; frames are taken from the whole of it.
"""

from collections import defaultdict
from pathlib import Path, PurePosixPath

from stop_core.datasets.annotations import (
    Listed,
    find_annotation,
    get_field,
    read_entries,
    read_json,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import SPLITS, Clip, captioned_clip
from stop_core.datasets.video_files import VideoFiles

_LAYOUT = "train_data.json, val_data.json, test_data.json and the videos"


def read_didemo(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips, in the order of the official files.

    Raises:
        FileNotFoundError: if the root or an annotation file is not there.
        ValueError: if an annotation cannot be read, or a video is in two splits; the message names
            file and entry.
    """
    require_root(root, _LAYOUT)
    files = VideoFiles(root)
    listed = Listed()
    clips = []
    for split in SPLITS:
        path = find_annotation(root, f"{split}_data.json", layout=_LAYOUT)
        sentences: dict[str, list[str]] = defaultdict(list)
        for where, entry in read_entries(path, read_json(path, list)):
            video = safe_name(get_field(entry, "video", str, where), where)
            if video not in sentences:
                listed.add(video, where)
            text = get_field(entry, "description", str, where, may_be_empty=True)
            sentences[video].append(text)
        for video, texts in sentences.items():
            file = files.named(video, PurePosixPath(video).stem) or f"videos/{video}"
            clips.append(captioned_clip(video, file, split, video, [" ".join(texts)], str(path)))
    return clips
