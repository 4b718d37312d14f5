"""The speed of preprocessing against bare decord, and its memory as the rows grow.

    python benchmarks/preprocess.py                  # 1,000 clips made here
    python benchmarks/preprocess.py --clips DIR      # real ones, repeated up to 1,000
    python benchmarks/preprocess.py --decoder decord # preprocessing with decord, against decord
    python benchmarks/preprocess.py --rows 1000 10000

Speed. The floor is a bare decord thread: it opens each clip and fetches the same frames with one
`get_batch`, and does nothing else: no resize, no hash, no file. Its clips a second times the cores
are what the whole of preprocessing is held against. Floor and preprocessing take turns on the same
clips. One bare process on every core at once is timed too: what of "times the cores" this machine
can give at all. On a shared machine look at the ratio of CPU seconds, which others disturb less.

Memory. Tiny clips, all hard links to one file, so that rows are many and bytes are few: peak of the
driver, of a worker and of a decoding process, and seconds a row.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import psutil
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stop_core.decoding import Decoder, segment_midpoints

SCRIPT = Path(__file__).resolve().parents[1] / "pipelines" / "preprocess.py"


@dataclass(frozen=True)
class PreprocessBenchmark:
    """Time preprocessing against bare decord, or measure its memory at several numbers of rows."""

    clips: Path | None = None
    """A folder of real clips (default: clips are made)."""
    count: int = 1000
    """Clips in a turn; files are hard-linked to make up the number."""
    rounds: int = 3
    """Turns of each."""
    frames: int = 12
    """Frames of a clip."""
    size: int = 224
    """Edge of a frame, in pixels."""
    decoder: Decoder = "auto"
    """Decoder of preprocessing; the floor uses decord."""
    rows: tuple[int, ...] = ()
    """Measure the memory at these numbers of tiny clips, instead of speed."""


def main(options: PreprocessBenchmark) -> None:
    """Prints one line a turn, then the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        if options.rows:
            _print_memory(options.rows, Path(folder))
        else:
            _print_speed(options, Path(folder))


def _print_speed(options: PreprocessBenchmark, folder: Path) -> None:
    sources = sorted(options.clips.iterdir()) if options.clips else _make_clips(folder / "made")
    root = folder / "hmdb51"
    paths = _dataset(root, sources, options.count)
    cores = len(os.sched_getaffinity(0))
    print(f"{options}\n{len(sources)} files as {len(paths)} clips, {cores} cores")
    walls, machine, working, whole, busy = [], [], [], [], []
    for turn in range(options.rounds):
        bare = _bare(paths, options.frames)
        together = _together(paths, options.frames, cores)
        ours = _preprocess(root, folder / f"cache{turn}", options)
        print(
            f"bare decord {bare.wall:.1f} s (CPU {bare.cpu:.1f}); one on each core at once "
            f"{together:.1f} s; preprocess {ours.wall:.1f} s of which {ours.start:.1f} until the "
            f"first clip (CPU {ours.cpu:.1f})",
            flush=True,
        )
        walls.append(bare.wall / cores / (ours.wall - ours.start))
        machine.append(bare.wall / cores / together)
        working.append(together / (ours.wall - ours.start))
        whole.append(together / ours.wall)
        busy.append(bare.cpu / ours.cpu)
    for name, ratios in (
        ("speed / (cores x one bare decord thread), after the start", walls),
        ("one bare decord process on each core / the same", machine),
        ("speed / one bare decord process on each core, after the start", working),
        ("the same, start included", whole),
        ("CPU seconds of bare decord / of decoding and caching", busy),
    ):
        print(f"{name}: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")


@dataclass(frozen=True)
class Times:
    """Seconds."""

    wall: float
    cpu: float
    start: float = 0.0


def _bare(paths: Sequence[Path], frames: int) -> Times:
    """One process that opens every clip in decord and fetches the frames."""
    import decord

    begin, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        reader = decord.VideoReader(str(path), num_threads=1)
        reader.get_batch(segment_midpoints(len(reader), frames))
    return Times(time.perf_counter() - begin, time.process_time() - cpu)


def _together(paths: Sequence[Path], frames: int, cores: int) -> float:
    """Seconds that as many bare processes as cores take for all clips between them."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores) as pool:
        pool.starmap(_bare, [(paths[:1], frames)] * cores * 4)  # all have imported decord
        begin = time.perf_counter()
        parts = [(paths[i :: cores * 8], frames) for i in range(cores * 8)]
        pool.starmap(_bare, parts, chunksize=1)
        return time.perf_counter() - begin


def _preprocess(root: Path, cache: Path, options: PreprocessBenchmark) -> Times:
    """The command, as a user types it."""
    shape = f"--frames {options.frames} --size {options.size}"
    words = f"--dataset hmdb51 {shape} --decoder {options.decoder}".split()
    command = [sys.executable, str(SCRIPT), *words]
    command += ["--data-root", str(root), "--cache", str(cache), "--output", str(cache.parent)]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        watch = _Watch(driver.pid, cache)
        code = driver.wait()
        wall = time.perf_counter() - begin
        watch.stop()
    if code:
        raise SystemExit(f"preprocessing failed with exit code {code}")
    return Times(wall, watch.cpu, max(0.0, watch.first - begin))


class _Watch(threading.Thread):
    """Looks at a driver and its processes ten times a second: memory, CPU time of the work."""

    def __init__(self, driver: int, cache: Path) -> None:
        super().__init__(daemon=True)
        self.peak: dict[str, int] = {}
        self.first = 0.0
        self._seconds: dict[int, float] = {}
        self._driver = psutil.Process(driver)
        self._cache = cache
        self._done = threading.Event()
        self.start()

    @property
    def cpu(self) -> float:
        """Returns the CPU seconds of workers and decoding processes since the first clip."""
        return sum(self._seconds.values())

    def run(self) -> None:
        """Watches until `stop`."""
        before: dict[int, float] = {}
        while not self._done.wait(0.1):
            try:
                processes = [self._driver, *self._driver.children(recursive=True)]
            except psutil.Error:
                return
            for process in processes:
                self._look(process, before)
            if not self.first and next((self._cache / "data").glob(".*"), None) is not None:
                self.first = time.perf_counter()

    def _look(self, process: psutil.Process, before: dict[int, float]) -> None:
        try:
            name = process.name() + " ".join(process.cmdline())
            memory, times = process.memory_info().rss, process.cpu_times()
        except psutil.Error:
            return
        role = "driver" if process.pid == self._driver.pid else ""
        role = "decoding process" if "stop_core.decoding.child" in name else role
        role = "worker" if "ray::" in name else role
        if role:
            self.peak[role] = max(self.peak.get(role, 0), memory)
        if role in ("worker", "decoding process"):
            seconds = times.user + times.system
            if not self.first:
                before[process.pid] = seconds
            self._seconds[process.pid] = seconds - before.get(process.pid, 0.0)

    def stop(self) -> None:
        """Ends the watch."""
        self._done.set()
        self.join()


def _print_memory(rows: Sequence[int], folder: Path) -> None:
    """Prints peaks and the cost of a row for each number of rows."""
    tiny = _make_clip(folder / "tiny.mp4", width=32, height=32, frames=8, seed=0)
    for count in rows:
        root, cache = folder / f"root{count}", folder / f"cache{count}"
        _dataset(root, [tiny], count)
        options = f"--dataset hmdb51 --frames 2 --size 16 --data-root {root} --cache {cache}"
        command = [sys.executable, str(SCRIPT), *options.split(), "--output", str(folder / "out")]
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
            watch = _Watch(driver.pid, cache)
            code = driver.wait()
            watch.stop()
        if code:
            raise SystemExit(f"preprocessing failed with exit code {code}")
        wall = time.perf_counter() - begin
        cached = sum(json.loads((cache / "manifest.json").read_text())["counts"].values())
        peaks = ", ".join(f"{role} {peak >> 20} MiB" for role, peak in sorted(watch.peak.items()))
        first = watch.first - begin
        cost = (wall - first) / cached * 1e3
        print(f"{cached} rows in {wall:.1f} s ({cost:.2f} ms a row); peaks: {peaks}", flush=True)


def _dataset(root: Path, sources: Sequence[Path], count: int) -> list[Path]:
    """Links `count` clips in the layout of HMDB51."""
    videos, splits = root / "hmdb51_org/wave", root / "testTrainMulti_7030_splits"
    videos.mkdir(parents=True)
    splits.mkdir()
    copies: dict[int, Path] = {}
    paths, lines = [], []
    for i in range(count):
        source = sources[i % len(sources)]
        path = videos / f"film{i}_wave_f_cm_np1_fr_med_0{source.suffix}"
        # A copy now and then: a file system allows tens of thousands of links to one file.
        if i % 10_000 < len(sources):
            copies[i % len(sources)] = path
            path.write_bytes(source.read_bytes())
        else:
            os.link(copies[i % len(sources)], path)
        paths.append(path)
        lines.append(f"{path.name} 1 \n")
    (splits / "wave_test_split1.txt").write_text("".join(lines))
    return paths


def _make_clips(folder: Path) -> list[Path]:
    """Twelve clips of the usual sizes and lengths, in H.264 and MPEG-4."""
    folder.mkdir()
    return [
        _make_clip(
            folder / f"clip{i}{'.avi' if i % 3 == 0 else '.mp4'}",
            width=320 + 20 * (i % 2),
            height=240 + 16 * (i % 2),
            frames=(75, 120, 180, 250)[i % 4],
            seed=i,
        )
        for i in range(12)
    ]


def _make_clip(path: Path, width: int, height: int, frames: int, seed: int) -> Path:
    """Writes moving, noisy texture, which costs a decoder about what a film does."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            noise = rng.integers(0, 12, texture.shape, dtype=np.uint8)
            picture = np.roll(texture // 2, (i, 2 * i), (0, 1)) + noise
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


if __name__ == "__main__":
    main(tyro.cli(PreprocessBenchmark, config=(tyro.conf.FlagConversionOff,)))
