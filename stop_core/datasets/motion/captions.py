"""The demonstration set's twin for text-video retrieval: the same scenes with sentences.

    root/videos/<scene>.mp4
    root/captions.csv            video, split, caption; one line per caption, two captions per video
    root/motion_captions.json

A caption names the colour of the marked object (four), the direction, the colour (four) and the
shape (three) of the mover: 96 different ones, in two wordings. Many training videos share a
caption; of the 96 videos of validation and of test, each has its own, so that a text has one right
answer. The folder is written atomically, as in `files`.
"""

import csv
import itertools
import json
import shutil
import uuid
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch
from torch import Generator

from stop_core.datasets.clip import SPLITS, Clip, Split
from stop_core.datasets.motion.files import PIXELS, encode_clip
from stop_core.datasets.motion.scenes import (
    DIRECTIONS,
    MOVER_COLOURS,
    TARGET_COLOURS,
    draw_scenes,
    render,
)
from stop_core.datasets.motion.shapes import COLOURS, SHAPES, jittered_colours
from stop_core.storage.documents import parse_json, read_text, shown

VIDEOS_FOLDER = "videos"
CAPTIONS = "captions.csv"
_ARGUMENTS = "motion_captions.json"
_MOVER_SHAPES = ("circle", "square", "triangle")
STORIES = tuple(itertools.product(TARGET_COLOURS, DIRECTIONS, MOVER_COLOURS, _MOVER_SHAPES))
_CHUNK = 16
_GENERATOR_VERSION = 1


def captions_of(story: tuple[str, str, str, str]) -> tuple[str, str]:
    """Returns the two sentences of a video, from an element of `STORIES`."""
    marked, direction, colour, shape = story
    return (
        f"a video of a {marked} shape and a {colour} {shape} moving {direction}",
        f"a {colour} {shape} moving {direction} and a {marked} shape",
    )


def write_captioned_motion(root: Path, train: int, seed: int) -> None:
    """Writes `train` training clips, and one clip per story for validation and for test.

    Returns at once where `root` holds the set of the same arguments.

    Raises:
        ValueError: if `root` holds anything else, or `train` is below 1.
    """
    if train < 1:
        raise ValueError(f"train must be at least 1, got {train}")
    arguments = {"train": train, "seed": seed, "generator_version": _GENERATOR_VERSION}
    if root.exists():
        _check_same(root, arguments)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = root.with_name(f".{root.name}.{uuid.uuid4().hex}.staging")
    try:
        (staging / VIDEOS_FOLDER).mkdir(parents=True)
        _write_all(staging, train, seed)
        (staging / _ARGUMENTS).write_text(json.dumps(arguments) + "\n")
        staging.rename(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_captioned_motion(root: Path, fold: int) -> list[Clip]:
    """Lists the clips of a set that `write_captioned_motion` wrote; there is one fold.

    Raises:
        FileNotFoundError: if there is none at `root`.
    """
    del fold
    if not (root / CAPTIONS).is_file():
        raise FileNotFoundError(f"{root} holds no {CAPTIONS}; give the folder of a captioned set")
    sentences: dict[tuple[str, str], list[str]] = {}
    with (root / CAPTIONS).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            sentences.setdefault((row["video"], row["split"]), []).append(row["caption"])
    return [
        Clip(
            video_id=Path(video).stem,
            path=video,
            split=cast(Split, split),
            label=-1,
            class_name="",
            source=Path(video).stem,
            captions=tuple(captions),
        )
        for (video, split), captions in sentences.items()
    ]


def _check_same(root: Path, arguments: dict[str, int]) -> None:
    file = root / _ARGUMENTS
    try:
        found = parse_json(read_text(file)) if file.is_file() else "something else"
    except ValueError as problem:
        found = str(problem)
    if found != arguments:
        raise ValueError(
            f"{root} holds {shown(found)}, not captioned motion clips of {arguments}; give another "
            "folder, or move this one away yourself"
        )


def _write_all(staging: Path, train: int, seed: int) -> None:
    # Split and story of every scene: stories in turn, so that all are equally frequent.
    scenes = [("train", number % len(STORIES)) for number in range(train)]
    scenes += [(split, story) for split in SPLITS[1:] for story in range(len(STORIES))]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bit must not depend on how many cores there are
    try:
        for first in range(0, len(scenes), _CHUNK):
            stories = [story for _, story in scenes[first : first + _CHUNK]]
            _write_chunk(staging, first, stories, seed)
    finally:
        torch.set_num_threads(before)
    with (staging / CAPTIONS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video", "split", "caption"))
        for number, (split, story) in enumerate(scenes):
            for caption in captions_of(STORIES[story]):
                writer.writerow((_name(number), split, caption))


def _write_chunk(staging: Path, first: int, stories: list[int], seed: int) -> None:
    digest = sha256(f"motion-captions/{seed}/{first}".encode()).digest()
    generator = Generator().manual_seed(int.from_bytes(digest[:7]))
    chosen = [STORIES[story] for story in stories]
    labels = [
        TARGET_COLOURS.index(marked) * len(DIRECTIONS) + DIRECTIONS.index(direction)
        for marked, direction, _, _ in chosen
    ]
    colours_N = torch.tensor([COLOURS.index(colour) for _, _, colour, _ in chosen])
    scenes = replace(
        draw_scenes(torch.tensor(labels), generator),
        mover_colour_NVC=jittered_colours(colours_N, generator)[:, None],
        mover_shape_NV=torch.tensor([[SHAPES.index(shape)] for *_, shape in chosen]),
    )
    for number, frames_THWC in enumerate(render(scenes, PIXELS).numpy(), first):
        encode_clip(frames_THWC, staging / _name(number))


def _name(number: int) -> str:
    return f"{VIDEOS_FOLDER}/scene{number:05d}.mp4"
