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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from stop_core.datasets.annotations import read_csv_rows, safe_path
from stop_core.datasets.clip import NO_LABEL, SPLITS, Clip, Split
from stop_core.datasets.data_root import DataRoot
from stop_core.datasets.motion.files import CHUNK, PIXELS, encode_clip, seeded, write_set
from stop_core.datasets.motion.scenes import (
    DIRECTIONS,
    MOVER_COLOURS,
    TARGET_COLOURS,
    draw_scenes,
    render,
)
from stop_core.datasets.motion.shapes import COLOURS, SHAPES, jittered_colours

VIDEOS_FOLDER = "videos"
CAPTIONS = "captions.csv"
_ARGUMENTS = "motion_captions.json"
_MOVER_SHAPES = ("circle", "square", "triangle")
STORIES = tuple(itertools.product(TARGET_COLOURS, DIRECTIONS, MOVER_COLOURS, _MOVER_SHAPES))
_GENERATOR_VERSION = 1


def captions_of(story: tuple[str, str, str, str]) -> tuple[str, str]:
    """Returns the two sentences of a video, from an element of `STORIES`."""
    marked, direction, colour, shape = story
    return (
        f"a video of a {marked} shape and a {colour} {shape} moving {direction}",
        f"a {colour} {shape} moving {direction} and a {marked} shape",
    )


def write_captioned_motion(root: Path, train: int, seed: int) -> None:
    """Writes `train` training clips, and one clip per story for validation and for test."""
    if train < 1:
        raise ValueError(f"train must be at least 1, got {train}")
    arguments = {"train": train, "seed": seed, "generator_version": _GENERATOR_VERSION}
    record, write = root / _ARGUMENTS, partial(_write_all, arguments=arguments)
    write_set(record, "captioned motion clips", arguments, write)


def read_captioned_motion(root: Path) -> list[Clip]:
    """Lists the clips of a set that `write_captioned_motion` wrote."""
    data = DataRoot(root, f"{CAPTIONS} and {VIDEOS_FOLDER}/*.mp4")
    for where, row in read_csv_rows(data.find(CAPTIONS), "video", "split", "caption"):
        path = safe_path(row["video"], where)
        name, split, captions = Path(path).stem, cast(Split, row["split"]), (row["caption"],)
        data.add(Clip(name, path, split, NO_LABEL, "", name, captions), where, again=True)
    return data.finish()


def _write_all(staging: Path, arguments: dict[str, int]) -> None:
    (staging / VIDEOS_FOLDER).mkdir()
    # Split and story of every scene: stories in turn, so that all are equally frequent.
    scenes = [("train", number % len(STORIES)) for number in range(arguments["train"])]
    scenes += [(split, story) for split in SPLITS[1:] for story in range(len(STORIES))]
    for first in range(0, len(scenes), CHUNK):
        stories = [STORIES[story] for _, story in scenes[first : first + CHUNK]]
        generator = seeded(f"motion-captions/{arguments['seed']}/{first}")
        labels = [
            TARGET_COLOURS.index(marked) * len(DIRECTIONS) + DIRECTIONS.index(direction)
            for marked, direction, _, _ in stories
        ]
        colours_N = torch.tensor([COLOURS.index(colour) for _, _, colour, _ in stories])
        drawn = replace(
            draw_scenes(torch.tensor(labels), generator),
            mover_colour_NVC=jittered_colours(colours_N, generator)[:, None],
            mover_shape_NV=torch.tensor([[SHAPES.index(shape)] for *_, shape in stories]),
        )
        for number, frames_THWC in enumerate(render(drawn, PIXELS).numpy(), first):
            encode_clip(frames_THWC, staging / _name(number))
    with (staging / CAPTIONS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video", "split", "caption"))
        for number, (split, story) in enumerate(scenes):
            for caption in captions_of(STORIES[story]):
                writer.writerow((_name(number), split, caption))
    (staging / _ARGUMENTS).write_text(json.dumps(arguments) + "\n")


def _name(number: int) -> str:
    return f"{VIDEOS_FOLDER}/scene{number:05d}.mp4"
