"""A flipped byte, wherever it is, is found and its file named; so is a file that has gone."""

import random
import re
from pathlib import Path

import pytest

from pipelines.cache import VerifyCommand
from pipelines.cli.console import RunError
from stop_core.cache import CacheConfig, CacheJob, write_shard
from stop_core.cache.integrity import verify
from stop_core.datasets import DATASETS, select_clips


@pytest.fixture
def cache(hmdb51_root: Path, tmp_path: Path) -> Path:
    selection = select_clips(DATASETS["hmdb51"].read(hmdb51_root, 1))
    (hmdb51_root / selection.clips[0].path).write_bytes(b"broken")
    config = CacheConfig.of(DATASETS["hmdb51"], selection, fold=1, frames=2, size=16)
    job = CacheJob.open(tmp_path / "cache", config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, hmdb51_root, job.cache)
    job.finish()
    return tmp_path / "cache"


def _damaged(cache: Path) -> set[str]:
    try:
        return {re.split("[: ]", problem)[0] for problem in verify(cache) if problem}
    except ValueError as error:  # the manifest itself
        return {str(error).split()[0]}


def test_a_whole_cache_has_no_problem(cache: Path) -> None:
    assert list(verify(cache)) == [""] * (4 + 3 + 3)


def test_any_flipped_byte_is_found_and_its_file_named(cache: Path) -> None:
    chance = random.Random(0)
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 10
    for path in files:
        whole = path.read_bytes()
        for _ in range(8):
            at = chance.randrange(len(whole))
            flipped = bytes([whole[at] ^ 1 << chance.randrange(8)])
            path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
            assert _damaged(cache) == {str(path)}
        path.write_bytes(whole)


def test_a_missing_file_is_found_and_the_remedy_is_told(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next((cache / "data").glob("train*"))
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(RunError, match=r"1 of 10 files .*delete them .*stop preprocess --dataset"):
        VerifyCommand(str(cache)).run()
    assert f"{shard}: it is gone" in capsys.readouterr().out
    shard.write_bytes(whole)
    for record in (cache / "records").glob("*"):
        text = record.read_text()
        record.unlink()
        assert str(record) in _damaged(cache)
        record.write_text(text)
    VerifyCommand(str(cache)).run()
