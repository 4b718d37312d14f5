"""Finds out which patches need their prompts in a trained STOP, on the motion set.

The positions of all objects are known there. The script evaluates the validation clips several
times with one trained model, each time with spatial prompts on other patches: those with the
largest weights, those of the marked object, those of the other static objects. docs/findings.md has
its output.

    python benchmarks/motion_patches.py --run outputs/runs/motion-stop-seed0-...

Shapes: N clips, B of a batch, T frames, P patches of a frame, O static objects, D channels, C
classes, E of the joint space.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.experiment_fields import build_experiment
from stop_core.cache import FrameCache
from stop_core.clip.loading import load_clip, tower_shape
from stop_core.datasets.motion.files import CHUNK, MotionArguments, chunk_scenes
from stop_core.datasets.motion.shapes import UNITS
from stop_core.datasets.registry import MOTION_SEED, MOTION_TEST, MOTION_TRAIN
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.spatial import SpatialPrompting, SpatialPrompts
from stop_core.model.stop import StopModel
from stop_core.model.video_model import VideoModel
from stop_core.settings.class_templates import class_sentences
from stop_core.storage.paths import storage_path
from stop_core.trained_model.files import CONFIG_FILE, MODEL, PROMPTS

BATCH = 64
OF_AN_OBJECT = 4  # the nearest P / 4 patches to its centre count as an object's
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Options:
    """Evaluate a training on the motion set with prompts on some patches only."""

    run: Path
    """Folder of a training of the method stop."""
    cache: str = "outputs/cache/motion"
    """Cache of the motion set that it was trained on."""


def main(options: Options) -> None:
    """Prints the accuracy for each choice of patches."""
    cache = FrameCache(storage_path(options.cache))
    clips, patches = cache.split("val"), patches_of(options.run)
    marked_NP, others_NP = object_patches(clips.video_ids, patches)
    weightiest = [round(share * patches) for share in SHARES]
    choices: dict[str, int | Tensor] = {
        **{f"the {n_s} with the largest weights": n_s for n_s in weightiest},
        "only the marked object's": marked_NP,
        "only the other objects'": others_NP,
        "all but the marked object's": 1 - marked_NP,
        "all but the other objects'": 1 - others_NP,
        "none": torch.zeros_like(marked_NP),
    }
    frames, labels_N = clips.read(range(len(clips))), clips.labels
    for name, choice in choices.items():
        n_s = choice if isinstance(choice, int) else patches
        model, text_CE = load(options.run, n_s, cache.manifest.class_words)
        chosen_NP = choice if isinstance(choice, Tensor) else None
        right_N = predict(model, frames, text_CE, chosen_NP) == labels_N
        print(f"{name:30} {right_N.double().mean():.3f}", flush=True)
    covered = others_NP.sum(1).mean().item()
    print(f"the other objects' patches are {covered:.1f} of {patches} on average")
    found = ", ".join(f"{share:.2f}" for share in shares_found(options.run, cache))
    print(f"frames in which the choice holds the marked object's centre, block by block: {found}")


def patches_of(run: Path) -> int:
    """Returns P of the tower of a training."""
    shape = tower_shape(yaml.safe_load((run / MODEL / CONFIG_FILE).read_text())["tower"])
    assert shape is not None  # it is a tiny one
    return shape.patches


@torch.no_grad()
def shares_found(run: Path, cache: FrameCache) -> list[float]:
    """Returns how often the patch at the centre of the marked object is chosen, by block."""
    n_s = yaml.safe_load((run / MODEL / CONFIG_FILE).read_text())["n_s"]
    clips = cache.split("val")
    some = range(0, len(clips), 4)  # a trace is large
    model = cast(StopModel, load(run, n_s, cache.manifest.class_words)[0])
    patches = patches_of(run)
    nearest_N = torch.stack([nearest(clips.video_ids[i], patches)[0, 0] for i in some])
    traces = model.trace(clips.read(some))
    return [trace.r[torch.arange(len(some)), :, nearest_N].mean().item() for trace in traces]


def load(run: Path, n_s: int, class_words: Sequence[str]) -> tuple[VideoModel, Tensor]:
    """Returns the trained model with another `n_s`, and its class embeddings, [C, E]."""
    config = yaml.safe_load((run / MODEL / CONFIG_FILE).read_text())
    experiment = build_experiment({**config, "n_s": n_s}, str(run / MODEL / CONFIG_FILE))
    model = build_method(
        experiment, load_clip(experiment.tower, experiment.pretrained), len(class_words)
    ).eval()
    model.load_prompt_state_dict(load_file(run / MODEL / PROMPTS))
    with torch.no_grad():
        texts = ClassTexts(model, class_sentences(experiment.templates, class_words))
        return model, texts.embeddings()


@torch.no_grad()
def predict(model: VideoModel, frames: Tensor, text_CE: Tensor, chosen_NP: Tensor | None) -> Tensor:
    """Returns the class of every clip, [N]; `chosen_NP` limits the prompts to these patches."""
    found = []
    for start in range(0, len(frames), BATCH):
        part = slice(start, start + BATCH)
        with prompts_on(model, None if chosen_NP is None else chosen_NP[part]):
            found.append(model(frames[part], text_CE).argmax(1))
    return torch.cat(found)


@contextmanager
def prompts_on(model: VideoModel, chosen_NP: Tensor | None) -> Iterator[None]:
    """Adds the prompts to the patches of a mask, in every frame and block; None changes nothing.

    W^t weights the patches of the mask as if they had been chosen.
    """
    if chosen_NP is None:
        yield
        return

    def ask_for_every_prompt(
        layer: nn.Module, given: Any, named: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return given, {**named, "every_prompt": True}

    def choose(layer: nn.Module, given: Any, out: SpatialPrompts) -> SpatialPrompts:
        (tokens, *_), p_s = given, out.p_s
        assert p_s is not None
        r_BTP = chosen_NP[:, None].expand(p_s.shape[:3])
        return replace(out, r=r_BTP, tokens=tokens.with_h(tokens.h + r_BTP[..., None] * p_s))

    with ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, SpatialPrompting):
                before = layer.register_forward_pre_hook(ask_for_every_prompt, with_kwargs=True)
                hooks.callback(before.remove)
                hooks.callback(layer.register_forward_hook(choose).remove)
        yield


def object_patches(video_ids: Sequence[str], patches: int) -> tuple[Tensor, Tensor]:
    """Returns the patches of the marked object, and those of only the others: 0 or 1, [N, P]."""
    marked, others = [], []
    for video_id in video_ids:
        own_X, *other_OX = nearest(video_id, patches)[:, : patches // OF_AN_OBJECT]
        marked_P = torch.zeros(patches).index_fill(0, own_X, 1)
        others_P = torch.zeros(patches).index_fill(0, torch.cat(other_OX), 1)
        marked.append(marked_P)
        others.append(others_P * (1 - marked_P))
    return torch.stack(marked), torch.stack(others)


def nearest(video_id: str, patches: int) -> Tensor:
    """Returns the patches sorted by their distance to each static object, [O, P]."""
    wanted = MotionArguments(MOTION_TRAIN, MOTION_TEST, MOTION_SEED)
    grid = math.isqrt(patches)
    along_G = (torch.arange(grid) + 0.5) * (UNITS / grid)
    middle_P2 = torch.cartesian_prod(along_G, along_G).flip(-1)  # (x, y), row by row
    scene = int(video_id.partition("scene")[2][:5])
    centre_O2 = chunk_scenes(scene // CHUNK, wanted).static_centre_NO2[scene % CHUNK]
    away_OP2 = (middle_P2 - centre_O2[:, None] + UNITS / 2) % UNITS - UNITS / 2  # it wraps
    return away_OP2.norm(dim=-1).argsort(1)


if __name__ == "__main__":
    main(tyro.cli(Options))
