"""The trainings that are killed equal the one for comparison; other failures end them."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.cli.options import parse
from pipelines.train import TrainConfig
from tests.pipelines import chaos_train
from tests.pipelines.chaos_train import EXPERIMENT, Chaos
from tests.pipelines.ray_nodes import Stage
from tests.tools import options_of


def test_options_of_the_command_give_the_same_experiment() -> None:
    assert parse(TrainConfig, ["--cache", "c", *options_of(EXPERIMENT)]).experiment == EXPERIMENT


@pytest.mark.parametrize(("code", "starts"), [(1, 3), (2, 1)])
def test_driver_that_fails_without_a_kill_is_not_restarted_for_ever(
    code: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver.log").write_text("error: the reason")
    started = []

    def drive(*_: object) -> subprocess.Popen[bytes]:
        started.append(1)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(chaos_train, "_drive", drive)
    monkeypatch.setattr(chaos_train, "_SECONDS_AFTER_A_FAILURE", 0.0)
    stage = Stage(tmp_path, {}, {})
    nothing = Counter[str]()
    with pytest.raises(SystemExit, match=f"ended with {code}, .*(\\n.*)*the reason"):
        chaos_train._train_under_fire(stage, tmp_path, tmp_path, Chaos(), random.Random(0), nothing)
    assert len(started) == starts
