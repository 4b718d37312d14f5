"""Plans and records of shards: what is planned, found and retried follows from the files."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stop_core.cache.files import DATA, RECORDS, RETRY, record_path, shard_path, write_checked_json
from stop_core.cache.shards import (
    Failure,
    ShardPlan,
    ShardRecord,
    _stamp,
    begin_retry,
    plan_shards,
    still_to_retry,
    usual_clips_per_shard,
)
from stop_core.datasets import Clip, Split
from stop_core.storage.paths import RemotePath

RECORD = ShardRecord("train-00000", "train", 1, 5, "0" * 64, "1" * 64, ())
LOST = Failure("a", "a.mp4", "train", "find", "gone", 1)


def clip(number: int, split: Split) -> Clip:
    return Clip(f"{number}", f"{number}.mp4", split, 0, "c", f"{number}")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for folder in (DATA, RECORDS):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_a_shard_has_clips_of_one_split_in_the_order_of_the_list() -> None:
    splits: list[Split] = ["test", "train", "val", "train", "train", "test"]
    clips = [clip(number, split) for number, split in enumerate(splits)]
    found = plan_shards(clips, 2)
    assert [(plan.name, [int(one.video_id) for one in plan.clips]) for plan in found] == [
        ("train-00000", [1, 3]),
        ("train-00001", [4]),
        ("val-00000", [2]),
        ("test-00000", [0, 5]),
    ]
    assert all({one.split for one in plan.clips} == {plan.split} for plan in found)


@pytest.mark.parametrize(
    ("clips", "megabytes", "expected"),
    [
        (3_328, 0.02, 64),  # the embedded set
        (6_766, 1.8, 16),  # HMDB51
        (9_537, 1.8, 16),
        (118_000, 1.8, 32),
        (220_000, 1.8, 64),
        (220_000, 9.4, 32),  # 2 TB
        (1_100_000, 1.8, 128),  # 2 TB
        (10**8, 1.8, 256),
        (10**8, 0.1, 512),
        (1, 400, 1),
        (1, 0.001, 64),
    ],
)
def test_shards_grow_with_the_root_of_the_number_of_clips(
    clips: int, megabytes: float, expected: int
) -> None:
    count = usual_clips_per_shard(clips, round(megabytes * 1e6))
    assert count == expected
    if count > 16 and 8 < count * megabytes < 256 and count < 512:
        assert 2**-0.5 <= (clips**0.5 / 8) / count <= 2**0.5


def test_a_shard_has_8_mib_or_64_clips() -> None:
    for size, expected in ((2**19, 16), (2**19 - 1, 32), (2**18, 32), (2**18 - 1, 64), (1, 64)):
        assert usual_clips_per_shard(100, size) == expected


def test_a_source_is_known_by_its_size_and_time_and_none_if_it_cannot_be_reached(
    tmp_path: Path,
) -> None:
    path = tmp_path / "0.mp4"
    path.write_bytes(b"video")
    sources = ShardPlan("n", "val", (clip(0, "val"), clip(1, "val"))).sources(tmp_path)
    assert sources == [(5, path.stat().st_mtime_ns), None]
    assert _stamp(path / "below a file") is None


@pytest.mark.parametrize(
    ("problem", "is_absent"), [(FileNotFoundError(), True), (ConnectionError("away"), False)]
)
def test_a_store_that_does_not_answer_is_not_a_missing_file(
    problem: OSError, is_absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: RemotePath) -> None:
        raise problem

    monkeypatch.setattr(RemotePath, "stat", stat)
    remote = object.__new__(RemotePath)
    if is_absent:
        assert _stamp(remote) is None
    else:
        with pytest.raises(ConnectionError, match="away"):
            _stamp(remote)


def test_a_record_is_loaded_if_it_is_whole_and_of_its_file(cache: Path) -> None:
    assert ShardRecord.load(cache, RECORD.name) is None
    write_checked_json(record_path(cache, RECORD.name), asdict(RECORD))
    assert ShardRecord.load(cache, RECORD.name) == RECORD
    record_path(cache, RECORD.name).write_text("{}")
    assert ShardRecord.load(cache, RECORD.name) is None
    empty = replace(RECORD, file_bytes=0)
    assert (RECORD.matches_file(cache), empty.matches_file(cache)) == (False, True)
    for content, is_whole in ((b"1234", False), (b"12345", True), (b"123456", False)):
        shard_path(cache, RECORD.name).write_bytes(content)
        assert (RECORD.matches_file(cache), empty.matches_file(cache)) == (is_whole, False)


def test_what_failed_to_decode_is_retried_once(cache: Path) -> None:
    undecoded = replace(LOST, stage="decode")
    lost = replace(RECORD, failures=(LOST,))
    failed = replace(RECORD, name="train-00001", failures=(LOST, undecoded))
    begin_retry(cache, [RECORD, lost])
    assert not (cache / RETRY).exists()  # no clip can be retried
    assert still_to_retry(cache, [failed]) == frozenset()
    begin_retry(cache, [RECORD, lost, failed])
    assert still_to_retry(cache, [RECORD, lost, failed]) == {"train-00001"}
    again = replace(failed, failures=(LOST, replace(undecoded, attempts=2)))
    begin_retry(cache, [again])  # a retry that began is not begun again
    assert still_to_retry(cache, [again]) == frozenset()
    write_checked_json(cache / RETRY, {"records": []})
    with pytest.raises(ValueError, match="lists no records"):
        still_to_retry(cache, [failed])
