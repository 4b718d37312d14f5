"""Laws of the readers of all datasets."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stop_core.datasets import DATASETS, NO_LABEL, class_words, missing_clips
from stop_core.datasets.video_files import is_video

MakeTree = Callable[[str], Path]
NAMES = sorted(name for name, dataset in DATASETS.items() if dataset.generate is None)
LISTED_BY_ANNOTATION = [name for name in NAMES if name != "folder"]
every_dataset = pytest.mark.parametrize("name", NAMES)
every_list = pytest.mark.parametrize("name", LISTED_BY_ANNOTATION)


def _videos(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if is_video(path.name)]


@every_dataset
def test_ids_are_unique_files_are_found_and_nothing_leaves_the_root(
    make_tree: MakeTree, name: str
) -> None:
    root = make_tree(name)
    clips = DATASETS[name].read(root, 1)
    assert clips
    assert len({clip.video_id for clip in clips}) == len(clips)
    assert missing_clips(root, clips) == []
    for clip in clips:
        assert (root / clip.path).is_file()
        assert (root / clip.path).resolve().is_relative_to(root.resolve())


@every_dataset
def test_a_clip_has_a_class_or_captions(make_tree: MakeTree, name: str) -> None:
    dataset = DATASETS[name]
    clips = dataset.read(make_tree(name), 1)
    if dataset.task == "retrieval":
        assert all(clip.label == NO_LABEL and clip.class_name == "" for clip in clips)
        assert all(clip.captions and all(clip.captions) for clip in clips)
        return
    names = {clip.label: clip.class_name for clip in clips}
    assert set(names) == set(range(len(names)))
    assert all(names[clip.label] == clip.class_name for clip in clips)


@every_dataset
def test_a_class_becomes_plain_words(make_tree: MakeTree, name: str) -> None:
    for class_name in {clip.class_name for clip in DATASETS[name].read(make_tree(name), 1)}:
        assert re.fullmatch(r"[a-z ]*", class_words(class_name))


@every_dataset
def test_there_is_validation_and_no_source_is_in_training_too(
    make_tree: MakeTree, name: str
) -> None:
    clips = DATASETS[name].read(make_tree(name), 1)
    train, val = ({clip.source for clip in clips if clip.split == s} for s in ("train", "val"))
    assert train
    assert val
    assert not train & val


@every_list
def test_the_list_depends_on_the_annotation_alone(make_tree: MakeTree, name: str) -> None:
    root = make_tree(name)
    before = DATASETS[name].read(root, 1)
    for path in _videos(root)[::2]:
        path.unlink()
    after = DATASETS[name].read(root, 1)
    assert [replace(clip, path="") for clip in after] == [replace(c, path="") for c in before]
    gone = [clip for clip in before if not (root / clip.path).exists()]
    assert missing_clips(root, before) == gone
    assert len(missing_clips(root, after)) == len(gone) > 0


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("csv", "folder"))])
def test_videos_may_have_been_converted_and_moved(make_tree: MakeTree, name: str) -> None:
    root = make_tree(name)
    before = DATASETS[name].read(root, 1)
    for i, path in enumerate(sorted(_videos(root))):
        path.rename(path.with_suffix((".webm", ".MP4", ".avi", ".mkv")[i % 4]))
    after = DATASETS[name].read(root, 1)
    assert missing_clips(root, after) == []
    assert [clip.video_id for clip in after] == [clip.video_id for clip in before]


@every_dataset
def test_an_absent_root_or_annotation_is_told_with_what_to_do(
    make_tree: MakeTree, name: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent is not a folder: give --data-root"):
        DATASETS[name].read(tmp_path / "absent", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r"empty.* hold"):
        DATASETS[name].read(tmp_path / "empty", 1)


def _annotations(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]


def _refusal(name: str, root: Path) -> str | None:
    """Returns the message for a broken annotation; other exceptions fail the test."""
    try:
        DATASETS[name].read(root, 1)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


@every_list
def test_an_annotation_cut_short_is_refused_in_one_sentence(make_tree: MakeTree, name: str) -> None:
    """Every file of the annotation in turn, ending in mid-line."""
    root = make_tree(name)
    refusals = []
    for path in _annotations(root):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 + 1])
        refusals.append(_refusal(name, root))
        path.write_bytes(content)
    told = [refusal for refusal in refusals if refusal is not None]
    assert told
    assert all(refusal.startswith(str(root)) and "\n" not in refusal for refusal in told)


@every_list
def test_a_needed_file_that_is_no_text_is_named(make_tree: MakeTree, name: str) -> None:
    root = make_tree(name)
    for path in _annotations(root):
        content = path.read_bytes()
        path.unlink()
        absent = _refusal(name, root)
        path.write_bytes(b"\x80\xff\x00junk" * 9)
        broken = _refusal(name, root)
        path.write_bytes(content)
        # A file that can be absent may belong to another protocol.
        assert path.name in (broken or "") or absent is None


@pytest.mark.parametrize("name", ["folder", "hmdb51", "csv", "kinetics", "ssv2"])
@pytest.mark.parametrize("form", ["{} ", "\u200b{}", "{}\u00a0"])
def test_labels_that_look_alike_are_one_class(make_tree: MakeTree, name: str, form: str) -> None:
    root = make_tree(name)
    before = DATASETS[name].read(root, 1)
    old = {"folder": "wave", "csv": "wave", "hmdb51": "wave", "kinetics": "yoga"}.get(name)
    if name == "folder":
        (root / "test" / "wave").rename(root / "test" / form.format("wave"))
    elif name == "hmdb51":
        for path in root.glob("*/wave*"):
            path.rename(path.with_name(path.name.replace("wave", form.format("wave"), 1)))
    else:
        file = {"csv": "clips.csv", "kinetics": "annotations/val.csv", "ssv2": "labels/train.json"}
        path = root / file[name]
        new = form.format(old or "[something]")
        path.write_text(path.read_text().replace(old or "[something]", new, 3))
    after = DATASETS[name].read(root, 1)
    assert missing_clips(root, after) == []
    assert sorted(clip.class_name for clip in after) == sorted(c.class_name for c in before)
    if name != "folder":  # whose ids are paths
        assert [replace(clip, path="") for clip in after] == [replace(c, path="") for c in before]
