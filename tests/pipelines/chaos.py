"""Kills preprocessing at random moments, and compares the cache with an uninterrupted one.

    python tests/pipelines/chaos.py --kills 20

Victims are the driver, a Ray worker, a decoding process and the raylet, drawn by a seed. A driver
that was killed is restarted, and so is one whose last message asks for it. The running driver has
to replace workers and decoding processes.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.tools import files_below, killed_at_the_end, signals_interrupt

SCRIPT = ROOT / "pipelines" / "preprocess.py"
_MOST_RESTARTS = 5  # of a driver without a kill: a busy machine may not start Ray in time


def command(root: Path, cache: Path) -> list[str]:
    """Returns the command that makes a cache of `root`."""
    options = f"--dataset hmdb51 --data-root {root} --cache {cache} --frames 4 --size 16"
    return [sys.executable, str(SCRIPT), *options.split(), "--output", str(cache.parent / "out")]


def kill_at_random(root: Path, cache: Path, kills: int, dice: random.Random) -> Counter[str]:
    """Makes a cache with at most `kills` kills; returns their number by victim."""
    done: Counter[str] = Counter()
    asked = 0
    log = cache.parent / "chaos.log"
    while True:
        with log.open("w") as file:
            driver = subprocess.Popen(
                command(root, cache), start_new_session=True, stdout=file, stderr=file
            )
        with killed_at_the_end(driver):
            while driver.poll() is None:
                victim = dice.choice(["driver", "worker", "decoder", "node"])
                pause = dice.uniform(0, 1.5)
                if sum(done.values()) >= kills:
                    driver.wait()
                elif _await_decoding(driver, cache):
                    time.sleep(pause)
                    if driver.poll() is None and _kill(driver.pid, victim, dice):
                        done[victim] += 1
        if driver.returncode == 0:
            return done
        if driver.returncode == -signal.SIGKILL:
            continue
        asked += 1
        time.sleep(1)  # the last message may come from another process
        if not _asks_for_another(log) or asked > kills + _MOST_RESTARTS:
            raise SystemExit(f"exit code {driver.returncode}:\n{log.read_text()}")


def _asks_for_another(log: Path) -> bool:
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    return bool(errors) and "run the same command again" in errors[-1]


def _await_decoding(driver: subprocess.Popen[bytes], cache: Path) -> bool:
    """Waits until a shard is being written; returns False if the driver ends before."""
    while driver.poll() is None:
        if list(cache.glob("data/.*.tmp")) and not (cache / "manifest.json").exists():
            return True
        time.sleep(0.01)
    return False


def _kill(driver: int, victim: str, dice: random.Random) -> bool:
    try:
        below = psutil.Process(driver).children(recursive=True)
        names = {process.pid: " ".join(process.cmdline()) for process in below}
    except psutil.Error:
        return False
    # A node without its agents gives up, which differs from a worker that fails.
    chosen = {
        "driver": [driver],
        "worker": [
            pid for pid, name in names.items() if name.startswith("ray::") and "Agent" not in name
        ],
        "decoder": [pid for pid, name in names.items() if "stop_core.decoding.child" in name],
        "node": [pid for pid, name in names.items() if "raylet/raylet" in name.partition(" ")[0]],
    }[victim]
    if not chosen:
        return False
    try:
        os.kill(dice.choice(chosen), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def many_clips(root: Path, count: int) -> Path:
    """Links `count` clips to a few files, one of them broken, in the layout of HMDB51."""
    folder = root / "hmdb51_org/wave"
    folder.mkdir(parents=True)
    names = [f"film{i}_wave_f_cm_np1_fr_med_0.mp4" for i in range(count)]
    for i, name in enumerate(names):
        if i < 8:
            write_clip(folder / name, seed=i)
        else:
            os.link(folder / names[i % 8], folder / name)
    (folder / names[5]).unlink()
    (folder / names[5]).write_bytes((folder / names[6]).read_bytes()[:-500])
    splits = root / "testTrainMulti_7030_splits"
    splits.mkdir()
    (splits / "wave_test_split1.txt").write_text("".join(f"{name} 1 \n" for name in names))
    return root


def write_clip(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        picture = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        for i in range(60):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, i, 1), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def main() -> None:
    """Runs rounds until there were enough kills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clips", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = many_clips(Path(folder) / "clips", options.clips)
        whole = Path(folder) / "whole"
        kill_at_random(root, whole, 0, dice)
        expected, done = files_below(whole), Counter[str]()
        for turn in range(1000):
            if sum(done.values()) >= options.kills:
                break
            cache = Path(folder) / f"killed{turn}"
            most = min(5, options.kills - sum(done.values()))
            now = kill_at_random(root, cache, most, dice)
            done += now
            same = files_below(cache) == expected
            print(f"{dict(now)}: {'the same bytes' if same else 'DIFFERENT'}", flush=True)
            if not same:
                raise SystemExit(1)
        print(f"{sum(done.values())} kills ({dict(done)}), every cache the same", flush=True)


if __name__ == "__main__":
    with signals_interrupt():
        main()
