"""A small tree of every dataset, in exactly the layout of its official archives."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

REAL = Path(__file__).parents[4] / "shared/data/annotations"
MakeTree = Callable[[str], Path]
Write = Callable[[str, object], None]
Touch = Callable[..., None]


def _hmdb51(write: Write, touch: Touch) -> None:
    for name in ("ride_bike", "wave"):
        files = [f"film{i}_{name}_f_cm_np1_fr_med_0.avi" for i in range(5)]
        lines = [f"{file} {2 if i == 4 else 1} \n" for i, file in enumerate(files)]
        write(f"testTrainMulti_7030_splits/{name}_test_split1.txt", "".join(lines))
        touch(*(f"hmdb51_org/{name}/{file}" for file in files))


def _ucf101(write: Write, touch: Touch) -> None:
    write("ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\r\n2 YoYo\r\n")
    train, test = "", ""
    for number, name in ((1, "ApplyEyeMakeup"), (2, "YoYo")):
        for group in range(1, 4):
            for clip in (1, 2):
                file = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
                touch(f"UCF-101/{file}")
                if group == 1:
                    test += f"{file}\r\n"
                else:
                    train += f"{file} {number}\r\n"
    write("ucfTrainTestlist/trainlist01.txt", train)
    write("ucfTrainTestlist/testlist01.txt", test)


def _ssv2(write: Write, touch: Touch) -> None:
    write("labels/labels.json", {"Throwing something": "1", "Holding something": "0"})

    def entry(number: int) -> dict[str, object]:
        verb = ("Holding", "Throwing")[number % 2]
        thing = {"template": f"{verb} [something]", "placeholders": ["a pen"]}
        return {"id": str(number), "label": f"{verb.lower()} a pen", **thing}

    write("labels/train.json", [entry(i) for i in range(1, 9)])
    write("labels/validation.json", [entry(i) for i in (20, 21)])
    write("labels/test.json", [{"id": "30"}, {"id": "31"}])
    write("labels/test-answers.csv", "31;Throwing something\n30;Holding something\n")
    numbers = (*range(1, 9), 20, 21, 30, 31)
    touch(*(f"20bn-something-something-v2/{i}.webm" for i in numbers))


def _kinetics(write: Write, touch: Touch) -> None:
    for file, split, first in (
        ("train", "train", 0),
        ("val", "validate", 10),
        ("test", "test", 20),
    ):
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for i in range(first, first + (8 if split == "train" else 2)):
            label = ("air drumming", "yoga")[i % 2]
            written = f'"{label}"' if " " in label else label
            lines.append(f"{written},-id{i:02d}_{'x' * 5},{i},{i + 10},{split},0")
            touch(f"{file}/{label}/-id{i:02d}_{'x' * 5}_{i:06d}_{i + 10:06d}.mp4")
        write(f"annotations/{file}.csv", "\n".join(lines) + "\n")


def _msrvtt(write: Write, touch: Touch) -> None:
    # Clips 2k and 2k + 1 are cut from one address.
    videos = [
        {"video_id": f"video{i}", "url": f"https://www.youtube.com/watch?v={i // 2}", "id": i}
        for i in range(12)
    ]
    sentences = [
        {"sen_id": 100 * i + k, "video_id": f"video{i}", "caption": f"sentence {k} of video {i}"}
        for k in range(3)
        for i in range(12)
    ]
    write("MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    write("MSRVTT_train.9k.csv", "\r\n".join(["video_id", *(f"video{i}" for i in range(8)), ""]))
    write("MSRVTT_train.7k.csv", "\r\n".join(["video_id", *(f"video{i}" for i in range(6)), ""]))
    test = [f"ret{i},msr{i},video{i},the sentence of video {i}" for i in range(8, 12)]
    write("MSRVTT_JSFUSION_test.csv", "\n".join(["key,vid_key,video_id,sentence", *test, ""]))
    touch(*(f"videos/all/video{i}.mp4" for i in range(12)))


def _activitynet(write: Write, touch: Touch) -> None:
    for captions, ids, first in (("train", "train_ids", 0), ("val_1", "val_ids", 20)):
        names = [f"v_--{i:02d}_abc" for i in range(first, first + 6)]
        entry = {"duration": 9.5, "timestamps": [[0, 5], [4, 9]], "sentences": ["One.", "  Two."]}
        write(f"{captions}.json", {name: entry for name in names})
        write(f"{ids}.json", [*names, "v_without_captions"])
        touch(*(f"videos/{name}.mp4" for name in names))


def _didemo(write: Write, touch: Touch) -> None:
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        entries = [
            {
                "annotation_id": k,
                "video": f"{i}@N00_24{i}_274c77d26a.mov",
                "description": f"moment {k}",
                "times": [[0, 0], [1, 1]],
                "num_segments": 6,
            }
            for k in range(2)
            for i in range(first, first + 3)
        ]
        write(f"{split}_data.json", entries)
        # As the official script saves them.
        touch(*(f"videos/{i}@N00_24{i}_274c77d26a.mov.mp4" for i in range(first, first + 3)))


def _vatex(write: Write, touch: Touch) -> None:
    files = ("training_v1.0", "validation_v1.0", "public_test_english_v1.1")
    for file, first in zip(files, (0, 10, 20), strict=True):
        names = [f"-id{i:02d}__wxyz_000001_00001{k}" for i in range(first, first + 3) for k in "12"]
        captions = [f"english {k}" for k in range(3)]
        entries = [{"videoID": n, "enCap": captions, "chCap": ["中文"]} for n in names]
        write(f"vatex_{file}.json", entries)
        touch(*(f"videos/{name}.mp4" for name in names))
    write("test_list.txt", "".join(f"-id{i:02d}__wxyz_000001_000011\n" for i in range(10, 13)))


def _lsmdc(write: Write, touch: Touch) -> None:
    files = ("annos_training", "annos_val", "challenge_1000_publictect")
    for file, movie in zip(files, ("0001_American_Beauty", "1004_Juno", "3086_UGLY"), strict=True):
        lines = ""
        for i in range(3):
            start, end = f"00.23.2{i}.000", f"00.23.2{i}.886"
            times = "\t".join([start, end] * 2)
            clip = f"{movie}_{start}-{end}"
            lines += f"{clip}\t{times}\tSOMEONE waits, {i}.\r\n"
            if file == "annos_training" and i == 0:
                lines += f'{clip}\t{times}\t She "waits".\r\n'
            touch(f"{movie}/{clip}.avi")
        write(f"LSMDC16_{file}.csv", lines)


def _msvd(write: Write, touch: Touch) -> None:
    captions = {}
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        names = [f"-_hbPLsZ{i:02d}o_{i}_{i + 9}" for i in range(first, first + 3)]
        write(f"{split}_list.txt", "\r\n".join(names))
        captions |= {name: [["a", "man", "runs"], ["he", "runs"]] for name in names}
        touch(*(f"YouTubeClips/{name}.avi" for name in names))
    write("raw-captions.pkl", pickle.dumps(captions))


def _folder(write: Write, touch: Touch) -> None:
    for split in ("train", "test"):
        touch(*(f"{split}/{name}/clip{i}.mp4" for name in ("dive", "wave") for i in range(4)))
    write("train/dive/notes.txt", "not a video")


def _csv(write: Write, touch: Touch) -> None:
    lines = ["path,split,label,caption,source"]
    for i in range(12):
        split, label = ("test" if i % 6 == 5 else "train"), ("dive", "wave")[i % 2]
        lines.append(f'a/clip{i}.mkv,{split},{label},"one, {i}",film{i // 2}')
        lines.append(f"a/clip{i}.mkv,{split},{label},two {i},film{i // 2}")
        touch(f"a/clip{i}.mkv")
    write("clips.csv", "\n".join(lines) + "\n")


TREES: dict[str, Callable[[Write, Touch], None]] = {
    "hmdb51": _hmdb51,
    "ucf101": _ucf101,
    "ssv2": _ssv2,
    "kinetics": _kinetics,
    "msrvtt": _msrvtt,
    "activitynet": _activitynet,
    "didemo": _didemo,
    "vatex": _vatex,
    "lsmdc": _lsmdc,
    "msvd": _msvd,
    "folder": _folder,
    "csv": _csv,
}


def make_tree_at(root: Path, name: str) -> None:
    """Writes the tree of a dataset, with empty videos."""

    def write(path: str, content: object) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / path).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (root / path).write_text(text, encoding="utf-8", newline="")

    def touch(*paths: str) -> None:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()

    TREES[name.partition("-")[0]](write, touch)


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """A function that writes the tree of a dataset, with empty videos, and returns its root."""

    def make(name: str) -> Path:
        make_tree_at(tmp_path / name, name)
        return tmp_path / name

    return make


@pytest.fixture
def real_annotations() -> Callable[[str], Path]:
    """A function that returns the folder of a dataset's real annotations, or skips the test."""

    def find(name: str) -> Path:
        if not (REAL / name).is_dir():
            pytest.skip(f"no real annotation files of {name} here")
        return (REAL / name).resolve()

    return find
