"""DiDeMo for paragraph-to-video retrieval: 10,464 videos from Flickr, with about 4 sentences each.

The official annotations, and the videos anywhere below the root:

    <root>/train_data.json, val_data.json, test_data.json   [{"video", "description", "times", ...}]
    <root>/videos/<video>      also <video>.mp4, as the official script saves them, or converted

All descriptions of a video, joined in the order of the file, are its one caption. Some videos are
listed under two extensions, and are one clip: 1,065 of validation and 1,004 of test are left.
Annotators saw the first 30 seconds of a video; frames are taken from the whole of it.
"""

from pathlib import Path

from stop_core.datasets.annotations import get_field, read_annotations, read_entries, safe_name
from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip
from stop_core.datasets.data_root import DataRoot, Listing

_LAYOUT = "train_data.json, val_data.json, test_data.json and the videos"


def read_didemo(root: Path) -> list[Clip]:
    """Lists the training, validation and test clips, in the order of the official files."""
    data, moments = DataRoot(root, _LAYOUT), Listing()
    for split in SPLITS:
        file = data.find(f"{split}_data.json")
        for where, entry in read_entries(file, read_annotations(file, list)):
            video = safe_name(get_field(entry, "video", str, where), where)
            text = get_field(entry, "description", str, where, may_be_empty=True)
            moments.add(Clip(video, "", split, NO_LABEL, "", video, (text,)), where, again=True)
    for clip in moments.finish():
        where, paragraph = f"{root}, {clip.split}_data.json", " ".join(clip.captions)
        v, path = clip.video_id, f"videos/{clip.video_id}"
        data.add_captioned(where, v, clip.split, [paragraph], source=v, default=path)
    return data.finish()
