"""The demonstration set is whole or not there, and the same every time."""

import hashlib
import json
from pathlib import Path

import av
import decord
import numpy as np
import pytest
import torch

from stop_core.datasets.motion import files
from stop_core.datasets.motion.files import (
    MotionArguments,
    chunk_scenes,
    clip_name,
    write_motion_dataset,
)
from stop_core.datasets.motion.scenes import CLASSES, Difficulty, render

WANTED = MotionArguments(train=16, test=8, seed=4)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def write(root: Path, wanted: MotionArguments = WANTED, workers: int = 1) -> Path:
    write_motion_dataset(root, wanted.train, wanted.test, wanted.seed, workers=workers)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("motion") / "set")


def clip_path(root: Path, scene_id: int) -> Path:
    return root / "hmdb51_org" / CLASSES[scene_id % len(CLASSES)] / clip_name(scene_id)


def test_the_same_arguments_give_the_same_bytes_with_more_workers(
    root: Path, tmp_path: Path
) -> None:
    assert digests(write(tmp_path / "again", workers=2)) == digests(root)


def test_another_seed_gives_other_clips(root: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", MotionArguments(train=8, test=8, seed=5))
    assert clip_path(other, 0).read_bytes() != clip_path(root, 0).read_bytes()


def test_the_layout_is_that_of_hmdb51_and_the_classes_are_balanced(root: Path) -> None:
    assert sorted(path.name for path in root.iterdir()) == [
        "hmdb51_org",
        "motion.json",
        "testTrainMulti_7030_splits",
    ]
    sources = []
    for name in CLASSES:
        split = root / "testTrainMulti_7030_splits" / f"{name}_test_split1.txt"
        lines = split.read_text().splitlines()
        assert all(line.endswith((" 1 ", " 2 ")) for line in lines)
        files, sides = zip(*(line.split() for line in lines), strict=True)
        assert sorted(sides) == ["1", "1", "2"]
        assert sorted(files) == sorted(p.name for p in (root / "hmdb51_org" / name).iterdir())
        sources += [file.partition(f"_{name}_f_nm_np1_fr_goo_0.mp4")[0] for file in files]
    assert sorted(sources) == [f"scene{i:05d}" for i in range(24)]


def test_a_clip_is_h264_of_twelve_frames_at_twelve_a_second(root: Path) -> None:
    with av.open(str(clip_path(root, 3))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height, stream.pix_fmt) == (64, 64, "yuv420p")
        assert stream.average_rate == 12
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_colours_survive_the_codec(root: Path) -> None:
    rendered = render(chunk_scenes(0, WANTED), 64)
    for scene_id in range(16):
        decoded = decord.VideoReader(str(clip_path(root, scene_id)), num_threads=1)
        frames = torch.from_numpy(decoded.get_batch(range(12)).asnumpy()).permute(0, 3, 1, 2)
        wanted = rendered[scene_id].permute(0, 3, 1, 2)
        seen, meant = (_halve(clip) for clip in (frames, wanted))
        assert (seen - meant).abs().mean() < 6  # of 255, at the size that the tower sees
        assert (seen - meant).mean((0, 2, 3)).abs().max() < 3  # no channel drifts


def test_a_complete_set_is_left_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "encode_clip", _must_not_run)
    before = digests(root)
    write(root)
    assert digests(root) == before


def test_a_set_of_other_arguments_is_refused_and_kept(root: Path) -> None:
    before = digests(root)
    with pytest.raises(ValueError, match="give another folder"):
        write(root, MotionArguments(train=16, test=8, seed=9))
    assert digests(root) == before


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_a_folder_of_something_else_is_refused_and_kept(
    tmp_path: Path, content: str | None
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    if content is not None:
        (tmp_path / "mine" / "motion.json").write_text(content)
    with pytest.raises(ValueError, match="give another folder"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_interrupted_run_leaves_nothing_and_the_next_one_is_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, done = files.encode_clip, []

    def fail_on_the_fifth(frames: np.ndarray, path: Path) -> None:
        done.append(path)
        if len(done) == 5:
            raise KeyboardInterrupt
        encode(frames, path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "encode_clip", fail_on_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    assert digests(write(tmp_path / "set")) == digests(root)


def test_of_two_writers_of_one_set_both_succeed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = files.encode_clip

    def be_overtaken(frames: np.ndarray, path: Path) -> None:
        monkeypatch.setattr(files, "encode_clip", encode)
        write(tmp_path / "set")
        encode(frames, path)

    monkeypatch.setattr(files, "encode_clip", be_overtaken)
    assert digests(write(tmp_path / "set")) == digests(root)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_arguments_are_kept_beside_the_clips(root: Path) -> None:
    kept = json.loads((root / "motion.json").read_text())
    assert kept == {"train": 16, "test": 8, "seed": 4, "generator_version": 1}


def test_a_harder_set_says_what_is_harder_and_is_not_mistaken_for_the_other(
    root: Path, tmp_path: Path
) -> None:
    hard = MotionArguments(train=8, test=8, seed=4, difficulty=Difficulty(movers=2, frames=4))
    write_motion_dataset(tmp_path / "set", 8, 8, 4, hard.difficulty)
    kept = json.loads((tmp_path / "set" / "motion.json").read_text())
    assert kept == {
        **{"train": 8, "test": 8, "seed": 4, "generator_version": 1},
        **{"movers": 2, "frames": 4},
    }
    with av.open(str(clip_path(tmp_path / "set", 0))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4
    with pytest.raises(ValueError, match="give another folder"):
        write_motion_dataset(tmp_path / "set", 8, 8, 4)


@pytest.mark.parametrize(("train", "test"), [(15, 8), (16, 0), (-8, 8)])
def test_unbalanced_counts_are_refused(tmp_path: Path, train: int, test: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 8"):
        write_motion_dataset(tmp_path / "set", train, test, 0)


def _halve(clip_TCHW: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        clip_TCHW.float(), (32, 32), mode="bicubic", antialias=True
    )


def _must_not_run(*_: object) -> None:
    raise AssertionError("the set was written again")
