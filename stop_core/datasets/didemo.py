"""DiDeMo for paragraph-to-video retrieval: 10,464 videos from Flickr, with about 4 sentences each.

The official annotations, and the videos anywhere below the root:

    <root>/train_data.json, val_data.json, test_data.json   [{"video", "description", "times", ...}]
    <root>/videos/<video>      also <video>.mp4, as the official script saves them, or converted

All descriptions of a video, joined in the order of the file, are its one caption. Some videos are
listed under two extensions, and are one clip: 1,065 of validation and 1,004 of test are left.
Annotators saw the first 30 seconds of a video; frames are taken from the whole of it.
"""

from pathlib import Path

from stop_core.datasets.annotations import (
    find_annotation,
    get_field,
    read_annotations,
    read_entries,
    require_root,
    safe_name,
)
from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip, captioned_clip
from stop_core.datasets.listing import Listing
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
    listing = Listing()
    for split in SPLITS:
        path = find_annotation(root, f"{split}_data.json", layout=_LAYOUT)
        for where, entry in read_entries(path, read_annotations(path, list)):
            video = safe_name(get_field(entry, "video", str, where), where)
            text = get_field(entry, "description", str, where, may_be_empty=True)
            listing.add(Clip(video, "", split, NO_LABEL, "", video, (text,)), where, again=True)
    return [
        captioned_clip(
            video_id=clip.video_id,
            path=files.named(clip.video_id) or f"videos/{clip.video_id}",
            split=clip.split,
            source=clip.source,
            captions=[" ".join(clip.captions)],
            where=f"{root}, {clip.split}_data.json",
        )
        for clip in listing.finish()
    ]
