"""The package of docs/your-own-method.md works, and gets what built-in entries have."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch

from pipelines import preprocess, train
from pipelines.cli.options import parse
from pipelines.preprocessing.make_cache import PreprocessConfig
from pipelines.sweeping.read_space import read_space
from stop_core.clip.loading import load_clip, tower_shape
from stop_core.clip.pretrained import weights_fingerprint
from stop_core.model.methods import build_method
from stop_core.settings.experiment import ExperimentConfig
from tests.caches import write_cache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def videos(tmp_path: Path, write_video: Callable[..., Path]) -> Path:
    """The folders of the page's dataset: two classes, four training and one test clips each."""
    root = tmp_path / "videos"
    for c, name in enumerate(("jump", "sit")):
        for i in range(5):
            split = "test" if i == 4 else "train"
            write_video(root / split / name / f"{name}{i}.mp4", seed=5 * c + i)
    return root


def test_the_method_is_trained_on_the_dataset_and_searched(
    own_package: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "my-clips", "--data-root", str(videos), "--output", str(tmp_path)]
    preprocess.main(parse(PreprocessConfig, [*words, "--check"]))
    assert "complete: all 10 clips" in capsys.readouterr().out
    cache = write_cache("my-clips", videos, tmp_path / "cache", frames=3, size=32)
    words = ["--cache", str(cache), "--output", str(tmp_path), "--method", "motion-head"]
    words += ["--options", "head_width=4", "--epochs", "1", "--in-process", "True"]
    result = train.main(parse(train.TrainConfig, words))
    assert "test/top1" in result.metrics
    space = read_space(own_package / "my_space.yaml")
    assert space.fixed["method"] == "motion-head"


def test_the_tower_is_loaded_by_its_name(own_package: Path) -> None:
    shape = tower_shape("my-tower")
    assert shape is not None
    torch.manual_seed(3)
    saved = load_clip("my-tower", "random").model
    torch.save(saved.state_dict(), own_package / "my_tower.pt")
    clip = load_clip("my-tower")
    for name, value in saved.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], value), name
    model = build_method(ExperimentConfig(method="motion-head", tower="my-tower"), clip, 2)
    assert (model.image_size, model.tower.patches, model.tower.depth) == (
        *(shape.image_size, shape.patches, shape.blocks),
    )
    assert len(weights_fingerprint("my-tower", None)) == 8
    with pytest.raises(ValueError, match="my-tower has its own weights"):
        load_clip("my-tower", "openai")
    assert "my-tower" not in open_clip.list_models()


# Depends on the batch of a video.
_BROKEN = """

class BrokenHead(MotionHead):
    def encode_video(self, frames: Tensor) -> Tensor:
        return super().encode_video(frames) + self.encode_frames(frames).mean((0, 1))


BROKEN = Method("broken-head", "my_video:BrokenHead", "breaks a law", MotionHeadOptions)
"""


@pytest.mark.slow
def test_the_laws_of_all_methods_are_those_of_the_package(own_package: Path) -> None:
    with (own_package / "my_video.py").open("a") as module:
        module.write(_BROKEN)
    with (own_package / "my_video-0.1.0.dist-info/entry_points.txt").open("a") as points:
        points.write("[stop_video.methods]\nbroken-head = my_video:BROKEN\n")
    tests = (ROOT / "tests/stop_core").rglob("test_*.py")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *(path for path in tests if "METHODS" in path.read_text()),
            *("-k", "motion-head or (broken-head and batch_of_a_video)"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{own_package}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert "test_no_method_depends_on_the_batch_of_a_video[broken-head]" in done.stdout
    failed, passed = re.findall(r"(\d+) (?:failed|passed)", done.stdout.splitlines()[-1])
    assert (int(failed), int(passed) > 25) == (1, True), done.stdout
