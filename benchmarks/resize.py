"""Compares the resize of the decoder (numba, Pillow's bytes) with torchvision's uint8 resize.

    python benchmarks/resize.py

For each, in a separate process with one thread: seconds to import and compile, memory (RSS) after
the first clip, and milliseconds per clip of 12 frames to 224 x 224, the two taken in turns. Then
the share of bytes of the crop that differ, and the largest difference.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FRAMES, SIZE, ROUNDS = 12, 224, 3
SIZES = [(256, 340), (480, 640), (1080, 1920)]
Resize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def numba_resize() -> Resize:
    """Returns the resize and crop that the decoding process uses."""
    from stop_core.decoding.resizing import resize_frames

    return lambda clip: resize_frames(clip, SIZE)


def torchvision_resize() -> Resize:
    """Returns the same with torchvision, antialiased and bicubic on bytes."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    torch.set_num_threads(1)

    def resize(clip: NDArray[np.uint8]) -> NDArray[np.uint8]:
        frames = torch.from_numpy(clip).permute(0, 3, 1, 2)
        frames = functional.resize(frames, [SIZE], InterpolationMode.BICUBIC, antialias=True)
        return functional.center_crop(frames, [SIZE, SIZE]).permute(0, 2, 3, 1).numpy()

    return resize


def clip_of(rows: int, columns: int) -> NDArray[np.uint8]:
    """Returns noise over a smooth gradient, [FRAMES, rows, columns, 3]."""
    y, x = np.mgrid[:rows, :columns]
    smooth = 127 + 100 * np.sin(x / 37 + y / 53)[..., None]
    noise = np.random.default_rng(0).normal(0, 20, (FRAMES, rows, columns, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def start(name: str) -> dict[str, float]:
    """Measures seconds and MiB until a process that decodes has resized its first clip."""
    code = (
        "import time; began = time.perf_counter(); import numpy as np;"
        "import stop_core.decoding.child, benchmarks.resize as r;"
        f"r.{name}_resize()(np.zeros((1, 4, 6, 3), np.uint8)); s = time.perf_counter() - began;"
        "kib = int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]);"
        "import json; print(json.dumps({'s': s, 'MiB': kib / 1024}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Prints one line per process start and one per size of picture."""
    for _ in range(ROUNDS):
        print("start:", {name: start(name) for name in ("numba", "torchvision")})
    ways = {"numba": numba_resize(), "torchvision": torchvision_resize()}
    for rows, columns in SIZES:
        clip = clip_of(rows, columns)
        off = np.abs(ways["numba"](clip).astype(int) - ways["torchvision"](clip))
        for _ in range(ROUNDS):
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(10):
                for name, resize in ways.items():
                    began = time.process_time()
                    resize(clip)
                    times[name].append(1000 * (time.process_time() - began))
            ours, theirs = min(times["numba"]), min(times["torchvision"])
            print(f"{columns}x{rows}: {ours:.2f} and {theirs:.2f} ms, ratio {theirs / ours:.2f}")
        print(f"  {np.mean(off > 0):.3%} of bytes differ by up to {off.max()}")


if __name__ == "__main__":
    main()
