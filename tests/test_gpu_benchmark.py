"""The script of `make gpu` runs, on the CPU, and its checks notice a difference."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stop_core.model.baselines import LinearProbe, ZeroShot
from stop_core.settings.methods import METHODS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu, gpu_checks


@pytest.fixture(autouse=True)
def _few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("zero-shot", "linear-probe")}
    monkeypatch.setattr(gpu_checks, "METHODS", few)


def test_the_page_has_checks_steps_and_the_training_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = gpu.GpuBenchmark(
        towers=("tiny",),
        videos=(2,),
        frames=3,
        attention=("frame",),
        modes=("eager",),
        width=4,
        rounds=1,
        device="cpu",
    )
    gpu.main(options)
    page = capsys.readouterr().out
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        "Results against the CPU",
        "Steps",
        "Training loop",
    ]
    assert page.startswith("CPU, torch ")
    assert page.count("| ok |") == 8
    assert "DIFFERS" not in page
    assert "failed" not in page
    steps = page[page.index("## Steps") :]
    assert len(re.findall(r"^\| tiny \| 2 \|", steps, re.MULTILINE)) == 3


def test_another_result_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[type] = []
    forward = LinearProbe.forward

    def wrong(self: LinearProbe, frames: Tensor, text_embeddings: Tensor) -> Tensor:
        calls.append(type(self))
        extra = torch.ones(3) if len(calls) > 1 else torch.zeros(3)
        return forward(self, frames, text_embeddings) + extra

    monkeypatch.setattr(LinearProbe, "forward", wrong)
    rows = {row[0]: row[2] for row in gpu_checks.check_device("cpu", "tiny", compiled=False)}
    assert rows["linear-probe: logits"] == "DIFFERS"
    assert rows["zero-shot: logits"] == "ok"
    assert ZeroShot not in calls
