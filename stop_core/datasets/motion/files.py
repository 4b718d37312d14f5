"""The demonstration set as video files, in the folders of HMDB51.

    root/hmdb51_org/<class>/<scene>_<class>_f_nm_np1_fr_goo_0.mp4
    root/testTrainMulti_7030_splits/<class>_test_split1.txt
    root/motion.json

The scenes are those of `scenes.py`: 64 x 64 pixels, 12 frames at 12 a second, of which every second
one is meant to be sampled; with another `Difficulty`, more. Equal arguments give equal bytes.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from stop_core.datasets.motion.scenes import CLASSES, Difficulty, Scenes, draw_scenes, render
from stop_core.storage.atomic import appearing_folder
from stop_core.storage.documents import parse_json, read_text, shown

PIXELS = 64
FRAMES_A_SECOND = 12
# Raise it with any change to what is drawn or encoded: old folders are refused, not mixed in.
GENERATOR_VERSION = 1

CHUNK = 16  # larger ones fall out of the cache and take half as long again
# Near lossless at these sizes, and small: about 10 kB a clip.
_X264 = {"preset": "superfast", "crf": "18"}


@dataclass(frozen=True)
class MotionArguments:
    """The arguments of a set, stored in `motion.json`."""

    train: int
    test: int
    seed: int
    difficulty: Difficulty = field(default_factory=Difficulty)
    generator_version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        for name, count in (("train", self.train), ("test", self.test)):
            if count < 1 or count % len(CLASSES):
                raise ValueError(
                    f"{name} must be a positive multiple of {len(CLASSES)}, as many clips of every "
                    f"class, got {count}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `motion.json`; default values of the difficulty are omitted."""
        values, usual = asdict(self), asdict(Difficulty())
        difficulty = values.pop("difficulty")
        return values | {name: v for name, v in difficulty.items() if v != usual[name]}


def write_motion_dataset(
    root: Path,
    train: int,
    test: int,
    seed: int,
    difficulty: Difficulty | None = None,
    workers: int = 2,
) -> None:
    """Writes `train` and `test` clips, balanced over the classes; `workers` threads encode."""
    wanted = MotionArguments(train, test, seed, difficulty or Difficulty())
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    record, write = root / "motion.json", partial(_write_all, wanted=wanted, workers=workers)
    write_set(record, "motion clips", wanted.to_dict(), write)


def write_set(
    record: Path, kind: str, arguments: dict[str, Any], write: Callable[[Path], None]
) -> None:
    """Writes a demonstration set atomically to a new folder, unless the folder holds the same set.

    Args:
        record: the file in the folder that holds its arguments.
        kind: the kind of the set, for messages.
        arguments: of the set.
        write: writes everything, the record as well, to a staging folder.

    Raises:
        ValueError: if the folder holds anything else.
    """
    root = record.parent
    if _is_complete(record, kind, arguments):
        return
    try:
        with _one_thread(), appearing_folder(root, lasting=False) as staging:
            write(staging)
    except OSError:
        # Another process was faster: fine if it wrote the same set, else an error.
        if not _is_complete(record, kind, arguments):
            raise


def seeded(text: str) -> Generator:
    """Returns a random generator whose seed is a hash of `text`."""
    return Generator().manual_seed(int.from_bytes(sha256(text.encode()).digest()[:7]))


def chunk_scenes(chunk: int, wanted: MotionArguments) -> Scenes:
    """Returns the scenes of one chunk, which depend only on the arguments and `chunk`."""
    scene_ids = _scene_ids(chunk, wanted)
    labels_N = torch.tensor([i % len(CLASSES) for i in scene_ids])
    return draw_scenes(labels_N, seeded(f"motion/{wanted.seed}/{chunk}"), wanted.difficulty)


def clip_name(scene_id: int) -> str:
    """Returns the file name of a clip: source (its scene), class and HMDB51's tags."""
    return f"scene{scene_id:05d}_{CLASSES[scene_id % len(CLASSES)]}_f_nm_np1_fr_goo_0.mp4"


def encode_clip(frames_THWC: NDArray[np.uint8], path: Path) -> None:
    """Writes RGB frames as H.264 in mp4, without dates or versions in the container."""
    _, height, width, _ = frames_THWC.shape
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND, options=_X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame_HWC in frames_THWC:
            picture = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _is_complete(record: Path, kind: str, arguments: dict[str, Any]) -> bool:
    """Returns True for the wanted set, False if nothing exists; ValueError for anything else."""
    root = record.parent
    if not root.exists() and not root.is_symlink():
        return False
    advice = "give another folder, or move this one away yourself"
    try:
        found = parse_json(read_text(record))
    except (OSError, ValueError):
        raise ValueError(f"{root} exists and is no set of {kind}; {advice}") from None
    if found != arguments:
        raise ValueError(f"{root} holds {kind} of {shown(found)}, not {arguments}; {advice}")
    return True


def _write_all(staging: Path, wanted: MotionArguments, workers: int) -> None:
    for name in CLASSES:
        (staging / "hmdb51_org" / name).mkdir(parents=True)
    total = wanted.train + wanted.test
    chunks = range(-(-total // CHUNK))
    # This thread draws and the others encode: x264 works outside of Python's lock. Drawing in
    # several threads gained a sixth, and crashed once in continuous integration, in a process
    # that also ran Ray. Processes would have to be spawned, each importing torch again, and could
    # not be used from a notebook cell or standard input.
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[None]] = deque()
        for chunk in chunks:
            frames_NTHWC = render(chunk_scenes(chunk, wanted), PIXELS).numpy()
            files = [
                staging / "hmdb51_org" / CLASSES[scene_id % len(CLASSES)] / clip_name(scene_id)
                for scene_id in _scene_ids(chunk, wanted)
            ]
            waiting.append(pool.submit(_encode_chunk, frames_NTHWC, files))
            if len(waiting) > 2 * workers:  # bounds the memory
                waiting.popleft().result()  # raises the worker's error
        while waiting:
            waiting.popleft().result()
    splits = staging / "testTrainMulti_7030_splits"
    splits.mkdir()
    for label, name in enumerate(CLASSES):
        # As in HMDB51: 1 for training, 2 for testing, and a space at the end of every line.
        lines = [
            f"{clip_name(scene_id)} {1 if scene_id < wanted.train else 2} \n"
            for scene_id in range(label, total, len(CLASSES))
        ]
        (splits / f"{name}_test_split1.txt").write_text("".join(lines))
    (staging / "motion.json").write_text(json.dumps(wanted.to_dict(), indent=2) + "\n")


def _encode_chunk(frames_NTHWC: NDArray[np.uint8], files: list[Path]) -> None:
    for frames_THWC, file in zip(frames_NTHWC, files, strict=True):
        encode_clip(frames_THWC, file)


def _scene_ids(chunk: int, wanted: MotionArguments) -> range:
    return range(chunk * CHUNK, min((chunk + 1) * CHUNK, wanted.train + wanted.test))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread, so that the last bit does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
