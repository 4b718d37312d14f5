"""Two stages give the rows of one process, survive a killed model, and say which of them waits."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.cli.console import RunError
from pipelines.inference.model_choice import ModelChoice
from pipelines.inference.stages import BothStages, PartModel, Pools, Work
from pipelines.inference.video_list import list_videos
from stop_core.trained_model.files import read_record
from tests.conftest import WriteVideo


class DyingModel(PartModel):
    """A model on the CPU, whose process is killed when it has the frames of its second part."""

    def __init__(self, work: Work, gpu: bool) -> None:
        super().__init__(work)
        self.parts = 0

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        self.parts += 1
        killed = Path(part["path"]).parent / "killed"
        if self.parts == 2 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), 9)
        return super().__call__(part)


@pytest.mark.slow
def test_a_model_that_is_killed_between_the_stages_loses_and_repeats_no_row(
    model_folder: Path, tmp_path: Path, write_video: WriteVideo, local_ray: None
) -> None:
    for seed in range(5):
        write_video(tmp_path / f"videos/v{seed}.mp4", frames=6, seed=seed)
    (tmp_path / "videos/v2.mp4").write_bytes(b"no video")
    work = Work(ModelChoice(model_folder), read_record(model_folder).preprocessing, "labels")
    videos = [asdict(video) for video in list_videos([str(tmp_path / "videos")])]
    there = [{"path": str(tmp_path / f"{n}.parquet"), "videos": [v]} for n, v in enumerate(videos)]
    # A model of no GPU: this machine has none.
    done = list(Pools(1, models=1, gpus_each=0).stream(there, work, model=DyingModel))
    assert (tmp_path / "killed").exists()
    assert sorted(part["path"] for part in done) == [part["path"] for part in there]
    assert sum(part["failures"] for part in done) == 1
    both = BothStages(work)
    here = {"path": str(tmp_path / "here.parquet"), "videos": videos}
    both(here)
    both.close()
    expected = pq.read_table(here["path"]).to_pylist()
    found = [row for part in there for row in pq.read_table(part["path"]).to_pylist()]
    for one, other in zip(found, expected, strict=True):
        assert (one["video"], one["error"], one["labels"]) == (
            *(other["video"], other["error"], other["labels"]),
        )
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_the_pools_fill_the_nodes() -> None:
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 32.0}]
    assert Pools.on(nodes, 1, None) == Pools(48, 2, 1)
    assert Pools.on(nodes, 0.25, 8) == Pools(8, 8, 0.25)
    assert Pools.on([{"CPU": 4.0, "GPU": 1.0}], 1 / 3, 99) == Pools(4, 3, 1 / 3)
    assert Pools.on(nodes, 0, None) == Pools(48)
    with pytest.raises(RunError, match="no node of the Ray cluster has a CPU"):
        Pools.on([{"GPU": 1.0}], 1, None)


def test_the_share_of_time_in_which_readers_feed_a_gpu_is_said_below_nine_tenths() -> None:
    def parts(count: int, reading: float, running: float) -> list[dict[str, Any]]:
        warming_up = {"videos": 4, "reading": 4 * reading, "running": 400.0}
        one = {"videos": 2, "reading": 2 * reading, "running": 2 * running}
        return [warming_up] * 2 + [one] * (count - 2)

    pools = Pools(16, models=1, gpus_each=1)
    assert pools.limit(parts(7, 0.1, 0.001)) is None, "too few to judge"
    assert pools.limit(parts(8, 0.1, 0.001)) == (
        "decoding is the limit: 16 CPUs feed 16% of the GPU; add CPUs or nodes with CPUs"
    )
    assert pools.limit(parts(8, 0.1, 0.0057)) is None  # 16 x 0.0057 / 0.1 is 91%
    assert "feed 89% of the GPU" in str(pools.limit(parts(8, 0.1, 0.00557)))
    several = Pools(16, models=8, gpus_each=0.5)
    assert several.limit(parts(23, 0.1, 0.01)) is None, "every model has to be warm"
    assert "16 CPUs feed 20% of 4 GPUs" in str(several.limit(parts(24, 0.1, 0.01)))
    assert Pools(16).limit(parts(99, 0.1, 0.001)) is None, "there is no GPU to feed"
