"""Reading for training: the frame cache against other formats that hold the same frames.

    python benchmarks/read.py
    python benchmarks/read.py --cold --clips 768 --batch 8

Every reader fills the same buffer, batch by batch, with clips in one shuffled order, from a warm
page cache. The readers take turns, round after round, so that a slow minute of the machine meets
all of them; a ratio is taken within a round. WebDataset cannot read in a given order, so it reads
in the order that its own shards have. A reader whose library is not installed is left out: LMDB and
WebDataset are in the extra `bench`; mosaicml-streaming requires numpy below 2.2, so it needs
a separate environment.

With `--cold`, the page cache of the files is dropped before each turn, which is checked, and the
ways to read the frame cache are compared: one thread that copies from the map, as before 29
November 2026; the same after advice to the system; and the threads of a training. Each reads a
random eighth of the clips: in a dataset larger than the memory, pages next to a clip are of no use.
Counts follow: bytes from the disk for each needed byte, and page faults that waited for the disk.
"""

import ctypes
import gc
import io
import mmap
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro

from stop_core.cache import CacheConfig, CachedClips, FrameCache, ShardPlan, ShardRecord
from stop_core.cache.files import record_path, shard_path, write_checked_json
from stop_core.cache.job import CacheJob
from stop_core.cache.layout import FRAMES_COLUMN, open_writer, rows_per_group, shard_schema
from stop_core.datasets import Clip
from stop_core.runtime.read_ahead import read_ahead
from stop_core.storage.atomic import hash_file

Read = Callable[[np.ndarray, list[int]], None]


@dataclass(frozen=True)
class Config:
    """Compare readers of the same frames: MB/s, and ratios to LMDB within a round."""

    clips: int = 192
    """Clips in all."""
    frames: int = 12
    """Frames of a clip."""
    size: int = 224
    """Edge of a frame."""
    batch: int = 16
    """Clips of a batch."""
    rounds: int = 16
    """Rounds in which every reader takes a turn."""
    only: tuple[str, ...] = ()
    """Only these readers."""
    cold: bool = False
    """Read from the disk."""


def frames_of(config: Config, clip: int) -> np.ndarray:
    """Noise over a slow gradient: neither constant nor all random, and cheap to make."""
    random = np.random.default_rng(clip)
    shape = (config.frames, config.size, config.size, 3)
    return random.integers(0, 64, shape, dtype=np.uint8) + np.uint8(clip % 192)


def write_cache(
    config: Config, folder: Path, compression: str, crop: str, clips_per_shard: int | None = None
) -> Path:
    """A cache as preprocessing would have made it, without the videos."""
    cache = folder / f"cache-{compression}-{crop}"
    clips = [Clip(f"{i}", f"{i}", "train", 0, "a", f"{i}") for i in range(config.clips)]
    made = CacheConfig(
        *(
            "bench",
            1,
            config.frames,
            config.size,
            None,
            (),
            ("train",),
            ("a",),
            "0" * 64,
            "recognition",
        ),
        crop=crop,
        compression=compression,
    )
    job = CacheJob.open(cache, made, clips, clips_per_shard)
    number = 0
    for plan in job.plans:
        path = shard_path(cache, plan.name)
        _write_shard(path, made, plan, number, config)
        number += len(plan.clips)
        rows, size = len(plan.clips), path.stat().st_size
        record = ShardRecord(plan.name, "train", rows, size, hash_file(path), "0" * 64, ())
        write_checked_json(record_path(cache, plan.name), record.to_dict())
    job.finish()
    return cache


def _write_shard(path: Path, made: CacheConfig, plan: ShardPlan, first: int, c: Config) -> None:
    import pyarrow as pa

    schema = shard_schema(made, plan.name)
    group = rows_per_group(made)
    small = {pa.string(): "x", pa.int32(): c.size, pa.float64(): 1.0}
    with open_writer(path, schema, made.compression) as writer:
        for start in range(0, len(plan.clips), group):
            numbers = range(first + start, first + min(start + group, len(plan.clips)))
            columns = {
                field.name: [0 if field.name == "label" else small.get(field.type, [])]
                * len(numbers)
                for field in schema
                if field.name != FRAMES_COLUMN
            } | {FRAMES_COLUMN: [frames_of(c, i).tobytes() for i in numbers]}
            table = pa.Table.from_pydict({n: columns[n] for n in schema.names}, schema=schema)
            writer.write_table(table, row_group_size=len(numbers))


def ours(compression: str = "none", crop: str = "center") -> Callable[[Config, Path], Read]:
    """The frame cache."""

    def make(config: Config, folder: Path) -> Read:
        clips = FrameCache(write_cache(config, folder, compression, crop)).split("train")

        def read(buffer: np.ndarray, order: list[int]) -> None:
            clips.read(order, out=torch.from_numpy(buffer))

        return read

    return make


def lmdb_reader(config: Config, folder: Path) -> Read:
    """LMDB: one value a clip, copied from the map."""
    import lmdb

    path = str(folder / "lmdb")
    environment = lmdb.open(path, map_size=config.clips * (_clip_bytes(config) + (1 << 14)) * 2)
    for i in range(config.clips):
        with environment.begin(write=True) as transaction:
            transaction.put(b"%08d" % i, frames_of(config, i).tobytes())
    environment.close()
    environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
    transaction = environment.begin(buffers=True)

    def read(buffer: np.ndarray, order: list[int]) -> None:
        rows = buffer.reshape(len(buffer), -1)
        for row, i in zip(rows, order, strict=True):
            row[:] = np.frombuffer(transaction.get(b"%08d" % i), np.uint8)

    return read


def npy_reader(config: Config, folder: Path) -> Read:
    """One .npy file of all clips, mapped by numpy."""
    shape = (config.clips, config.frames, config.size, config.size, 3)
    array = np.lib.format.open_memmap(folder / "a.npy", mode="w+", dtype=np.uint8, shape=shape)
    for i in range(config.clips):
        array[i] = frames_of(config, i)
    array.flush()
    mapped = np.load(folder / "a.npy", mmap_mode="r")

    def read(buffer: np.ndarray, order: list[int]) -> None:
        for row, i in zip(buffer, order, strict=True):
            row[...] = mapped[i]

    return read


def pyarrow_reader(config: Config, folder: Path) -> Read:
    """The shards of the frame cache through plain pyarrow: a row group for every row."""
    cache = write_cache(config, folder / "plain", "none", "center")
    files = [pq.ParquetFile(p, memory_map=True) for p in sorted(cache.glob("data/*.parquet"))]
    places = [
        (file, group, row)
        for file in files
        for group in range(file.num_row_groups)
        for row in range(file.metadata.row_group(group).num_rows)
    ]

    def read(buffer: np.ndarray, order: list[int]) -> None:
        for target, i in zip(buffer.reshape(len(buffer), -1), order, strict=True):
            file, group, row = places[i]
            column = file.read_row_group(group, columns=[FRAMES_COLUMN])[FRAMES_COLUMN]
            target[:] = np.frombuffer(column[row].as_buffer(), np.uint8)

    return read


def webdataset_reader(config: Config, folder: Path) -> Read:
    """WebDataset: .npy entries of tar files, read one after the other."""
    import webdataset

    for start in range(0, config.clips, 64):
        with webdataset.TarWriter(str(folder / f"{start:06d}.tar")) as tar:
            for i in range(start, min(start + 64, config.clips)):
                stream = io.BytesIO()
                np.save(stream, frames_of(config, i))
                tar.write({"__key__": f"{i:08d}", "npy": stream.getvalue()})
    urls = sorted(str(path) for path in folder.glob("*.tar"))

    def endless() -> Iterator[np.ndarray]:
        while True:
            dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
            for sample in dataset:
                yield np.load(io.BytesIO(sample["npy"]))

    stream = endless()

    def read(buffer: np.ndarray, order: list[int]) -> None:
        for row in buffer:
            row[...] = next(stream)

    return read


def mds_reader(config: Config, folder: Path) -> Read:
    """MosaicML Streaming: one value of bytes a clip, by number."""
    from streaming import MDSWriter, StreamingDataset

    out = str(folder / "mds")
    with MDSWriter(out=out, columns={"frames": "bytes"}) as writer:
        for i in range(config.clips):
            writer.write({"frames": frames_of(config, i).tobytes()})
    dataset = StreamingDataset(local=out, batch_size=config.batch, shuffle=False)

    def read(buffer: np.ndarray, order: list[int]) -> None:
        for row, i in zip(buffer.reshape(len(buffer), -1), order, strict=True):
            row[:] = np.frombuffer(dataset[i]["frames"], np.uint8)

    return read


READERS: dict[str, Callable[[Config, Path], Read]] = {
    "frame cache": ours(),
    "LMDB": lmdb_reader,
    ".npy map": npy_reader,
    "frame cache, whole frames": ours(crop="none"),
    "frame cache, zstd": ours(compression="zstd"),
    "MDS": mds_reader,
    "WebDataset (sequential)": webdataset_reader,
    "pyarrow": pyarrow_reader,
}


def _clip_bytes(config: Config) -> int:
    return config.frames * config.size * config.size * 3


def measure(config: Config, folder: Path) -> dict[str, list[float]]:
    """MB/s of every reader that is installed, a figure a round."""
    readers = {}
    for name, make in READERS.items():
        if config.only and name not in config.only:
            continue
        try:
            (folder / name).mkdir()
            readers[name] = make(config, folder / name)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    batches = config.clips // config.batch
    buffer = np.zeros((config.batch, config.frames, config.size, config.size, 3), dtype=np.uint8)
    for name, read in readers.items():  # warms the page cache and the maps, and checks the bytes
        for start in range(0, config.clips, config.batch):
            numbers = list(range(start, min(start + config.batch, config.clips)))
            read(buffer[: len(numbers)], numbers)
        read(buffer, list(range(config.batch)))
        if not name.startswith("Web") and not np.array_equal(buffer[3], frames_of(config, 3)):
            raise SystemExit(f"{name} gave other frames than were written")
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(config.rounds):
        order = np.random.default_rng(turn).permutation(config.clips).tolist()
        # Another reader begins each round: whoever follows a slow one finds colder caches.
        names = [*readers][turn % len(readers) :] + [*readers][: turn % len(readers)]
        for name in names:
            read = readers[name]
            started = time.perf_counter()
            for b in range(batches):
                read(buffer, order[b * config.batch : (b + 1) * config.batch])
            seconds = time.perf_counter() - started
            speeds[name].append(batches * buffer.nbytes / seconds / 1e6)
    return speeds


def by_page_faults(clips: CachedClips, batches: list[list[int]], buffer: np.ndarray) -> None:
    """One thread that copies from the map."""
    for batch in batches:
        for row, index in zip(buffer, batch, strict=True):
            shard, number = clips._place(index)
            np.copyto(row, shard.clip(number))


def by_read(clips: CachedClips, batches: list[list[int]], buffer: np.ndarray) -> None:
    """One thread that announces the clips of a batch to the system, then copies them."""
    for batch in batches:
        clips.read(batch, out=torch.from_numpy(buffer))


def by_read_ahead(clips: CachedClips, batches: list[list[int]], buffer: np.ndarray) -> None:
    """The threads of a training, which reads ahead."""
    del buffer
    for _ in read_ahead(clips, batches, torch.device("cpu")):
        pass


def drop_page_cache(files: list[Path]) -> None:
    """Removes files from the page cache; SystemExit if the system keeps more than 1% of them."""
    resident = total = 0
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                data = np.frombuffer(mapped, np.uint8)
                pages = np.zeros(-(-len(data) // mmap.PAGESIZE), np.uint8)
                address, size = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data))
                if ctypes.CDLL(None).mincore(address, size, ctypes.c_void_p(pages.ctypes.data)):
                    raise SystemExit(f"mincore failed for {path}")
                del data
        resident, total = resident + int((pages & 1).sum()), total + len(pages)
    if resident > 0.01 * total:
        raise SystemExit(f"{resident} of {total} pages are still in memory")


def _bytes_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure_cold(config: Config, folder: Path) -> dict[str, list[float]]:
    """MB/s of every way to read the frame cache from the disk, a figure a round; prints counts."""
    cache = write_cache(config, folder, "none", "center")
    files = sorted(cache.glob("data/*.parquet"))
    ways = {
        "page faults, one thread": by_page_faults,
        "advised, one thread": by_read,
        "read ahead": by_read_ahead,
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    buffer = np.zeros((config.batch, config.frames, config.size, config.size, 3), dtype=np.uint8)
    counts = {name: np.zeros(2) for name in ways}
    for turn in range(config.rounds):
        order = np.random.default_rng(turn).permutation(config.clips).tolist()
        starts = range(0, config.clips // 8 - config.batch + 1, config.batch)
        batches = [order[start : start + config.batch] for start in starts]
        for name in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
            clips = FrameCache(cache).split("train")  # the system keeps pages that are mapped
            for index in range(0, config.clips, 64):
                clips._place(index)  # opens each shard
            gc.collect()
            drop_page_cache(files)
            before = _bytes_from_disk(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            started = time.perf_counter()
            ways[name](clips, batches, buffer)
            seconds = time.perf_counter() - started
            needed = len(batches) * buffer.nbytes
            speeds[name].append(needed / seconds / 1e6)
            after = _bytes_from_disk(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            counts[name] += np.subtract(after, before) / (needed, len(batches) * config.batch)
            del clips
    for name, (read, faults) in counts.items():
        read, faults = read / config.rounds, faults / config.rounds
        print(f"{name:28} {read:.2f} bytes from disk a byte, {faults:.1f} waits a clip")
    return speeds


def first_batch(config: Config, cache: Path) -> float:
    """Seconds from opening a cache to its first shuffled batch, labels and all."""
    started = time.perf_counter()
    clips = FrameCache(cache).split("train")
    _ = clips.labels
    clips.read(np.random.default_rng(0).permutation(len(clips))[: config.batch].tolist())
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints."""
    config = tyro.cli(Config)
    folder = Path(tempfile.mkdtemp(prefix="stop-read-"))
    try:
        speeds = measure_cold(config, folder) if config.cold else measure(config, folder)
        base = "page faults, one thread" if config.cold else "LMDB"
        floor = speeds.get(base)
        for name, values in speeds.items():
            line = f"{name:28} {statistics.median(values):8.0f} MB/s"
            if floor:
                ratios = [value / low for value, low in zip(values, floor, strict=True)]
                line += f"   {statistics.median(ratios):5.2f} x {base}"
                line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            print(line)
        if "frame cache" in speeds:
            path = folder / "frame cache" / "cache-none-center"
            print(f"first batch of a newly opened cache: {first_batch(config, path):.3f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
