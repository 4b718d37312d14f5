"""Damages video files at random and decodes them.

    python tests/stop_core/decoding/fuzz.py --count 2000 [FILE ...]

Every mutant has to end as frames of the right shape or as a one-line reason, within the deadline
and the limit of memory. A child that crashes is a reason too, and is counted.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import av
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from stop_core.decoding import DecodeError, DecodeProcess, Decoder
from stop_core.decoding.child import MEMORY_LIMIT
from tests.scheduling import same_scheduling

CODECS = {
    "h264.mp4": ("libx264", {}),
    "h264.mkv": ("libx264", {}),
    "h264_keys.mp4": ("libx264", {"g": "8"}),
    "h264_keys.mkv": ("libx264", {"g": "8"}),
    "h265.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {}),
    "av1.mp4": ("libsvtav1", {}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4_b.avi": ("mpeg4", {"bf": "2"}),
}


def write_seeds(folder: Path, width: int = 96, height: int = 64) -> list[Path]:
    """Writes one clip of each codec that can be encoded here."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    paths = []
    for name, (codec, options) in CODECS.items():
        if codec not in av.codecs_available:
            continue
        with same_scheduling(), av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(30):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, 1), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        paths.append(folder / name)
    return paths


def mutate(data: bytes, other: bytes, dice: random.Random) -> tuple[str, bytes]:
    """Returns the name of the change, and the damaged bytes."""
    changed = bytearray(data)
    kind = dice.choice(["flip", "header", "number", "cut", "zero", "move", "swap", "insert"])
    head = min(len(data), 2048)
    if kind == "flip":
        for _ in range(dice.choice([1, 4, 32, 256])):
            changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == "header":  # containers keep their facts at the beginning, or at the end
        for _ in range(dice.choice([1, 2, 8])):
            at = dice.randrange(head)
            changed[at if dice.random() < 0.5 else len(data) - 1 - at] = dice.randrange(256)
    elif kind == "number":  # a length, a count or an offset that lies
        at = dice.randrange(max(1, head - 4))
        at = at if dice.random() < 0.5 else max(0, len(data) - 4 - at)
        value = dice.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0"])
        changed[at : at + 4] = value
    elif kind == "cut":
        del changed[dice.randrange(len(data)) :]
    elif kind == "zero":
        at = dice.randrange(len(data))
        length = min(dice.choice([16, 256, 4096]), len(data) - at)
        changed[at : at + length] = bytes(length)
    elif kind == "move":
        at, to = dice.randrange(len(data)), dice.randrange(len(data))
        changed[to : to + 512] = data[at : at + 512]
    elif kind == "swap":  # another file's beginning
        length = dice.choice([4, 12, 64, 512])
        changed[:length] = other[:length]
    else:
        at = dice.randrange(len(data))
        changed[at:at] = dice.randbytes(dice.choice([1, 3, 100]))
    return kind, bytes(changed)


def fuzz(
    sources: Sequence[Path], count: int, seed: int, timeout: float, wanted: Decoder = "auto"
) -> Counter[str]:
    """Decodes `count` mutants; returns how often each thing came of it.

    Raises:
        AssertionError: if one neither decodes nor says in a line why, or costs too much.
    """
    dice, contents = random.Random(seed), [path.read_bytes() for path in sources]
    ends: Counter[str] = Counter()
    decoder = DecodeProcess(6, 32, timeout, decoder=wanted)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            which = number % len(sources)
            kind, data = mutate(contents[which], dice.choice(contents), dice)
            path = Path(folder) / f"{number}{sources[which].suffix}"
            path.write_bytes(data)
            began = time.monotonic()
            (result,) = decoder.decode([path])
            took = time.monotonic() - began
            what = f"seed {seed}, mutant {number} ({kind} of {sources[which].name})"
            # A crash is tried twice, in a process that may have to be started.
            assert took < 2 * timeout + 30, f"{what}: {took:.0f} s"
            if isinstance(result, DecodeError):
                assert str(result), what
                assert "\n" not in str(result), what
                assert "unexpected" not in str(result), f"{what}: {result}"
                ends[re.sub(r"\d+", "N", str(result))] += 1
            else:
                assert result.frames.shape == (6, 32, 32, 3), what
                assert result.frame_index.max() < result.num_frames, what
                assert np.isfinite([result.fps, result.duration, *result.frame_time]).all(), what
                ends["frames"] += 1
            if decoder._child is not None:
                process = psutil.Process(decoder._child._process.pid)
                assert process.memory_info().rss < MEMORY_LIMIT, what
            path.unlink()
    decoder.close()
    return ends


def main() -> None:
    """Prints the results of the mutants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="clips to damage (default: made ones)")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=20)
    parser.add_argument("--decoder", choices=get_args(Decoder), default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = [*options.files, *write_seeds(Path(folder))]
        ends = fuzz(sources, options.count, options.seed, options.timeout, options.decoder)
    for end, number in ends.most_common():
        print(f"{number:6d}  {end}")


if __name__ == "__main__":
    main()
