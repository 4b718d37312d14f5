"""The process that decodes, so that no video can take down the one that writes the cache.

    python -m stop_core.decoding.child \\
        DECODER FRAMES SIZE CROP HASHED SLOTS TIMEOUT REQUESTS REPLIES MEMORY

REQUESTS and REPLIES are pipes, one line of JSON a message; MEMORY is a file in memory with room for
SLOTS clips. Frames go there, and nothing else does. See `DecodeProcess`, which starts it.
"""

import json
import math
import mmap
import os
import resource
import signal
import sys
from dataclasses import fields, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodedClip, DecodeError, Decoder
from stop_core.decoding.decode import decode_clip
from stop_core.decoding.resizing import crop_frames

# Address space beyond what the libraries take. A clip of twelve 8K frames needs about half.
MEMORY_LIMIT = 2 << 30
# The process asks to be replaced when so much has not been given back: decoders leak, and each
# clip should find the same room.
_MOST_GROWTH = MEMORY_LIMIT // 4


def main() -> None:
    """Answers requests until there are no more."""
    decoder = cast(Decoder, sys.argv[1])
    frames, size, crop, hashed, count = (int(word) for word in sys.argv[2:7])
    timeout = float(sys.argv[7])
    requests, replies, memory = (int(word) for word in sys.argv[8:11])
    slots = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(count, -1)
    # What numba compiles is compiled before the clock and the limit begin.
    crop_frames(np.zeros((1, 4, 6, 3), np.uint8), 8)
    before = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_LIMIT, before + MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(requests, "rb") as lines, open(replies, "wb", buffering=0) as answers:  # noqa: PTH123
        answers.write(b"ready\n")
        # Native code prints a line for every file that it cannot open.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        for line in lines:
            request = json.loads(line)
            # Should the parent be gone and a decoder hang, this ends the process: an alarm needs
            # no lock of Python's.
            signal.alarm(math.ceil(timeout) + 5)
            out = slots[request["slot"]]
            path = Path(request["path"])
            answer = _answer(path, frames, size, bool(crop), bool(hashed), out, decoder)
            signal.alarm(0)
            answer["worn"] = _address_space() - before > _MOST_GROWTH
            answers.write(json.dumps(answer).encode() + b"\n")


def _answer(
    path: Path,
    frames: int,
    size: int,
    crop: bool,
    hashed: bool,
    out: NDArray[np.uint8],
    decoder: Decoder,
) -> dict[str, Any]:
    try:
        clip = decode_clip(path, frames, size, crop, out, decoder)
        if hashed:  # here, where the deadline ends it: a sparse file can be larger than any disk
            with path.open("rb") as file:
                clip = replace(clip, source_sha256=file_digest(file, "sha256").hexdigest())
    except (DecodeError, OSError) as error:
        # An OSError is about this source: nothing else is read or written here.
        return {"error": str(error) or type(error).__name__}
    except MemoryError:
        return {"error": f"needs more than {MEMORY_LIMIT >> 20} MiB of memory"}
    except Exception as error:  # a file can be broken in ways that no decoder foresaw
        return {"error": " ".join(f"unexpected {type(error).__name__}: {error}".split())}
    return {"clip": small_fields(clip), "shape": clip.frames.shape}


def small_fields(clip: DecodedClip) -> dict[str, Any]:
    """Returns everything but the frames, ready for JSON; numbers come back the same."""
    values = {field.name: getattr(clip, field.name) for field in fields(clip)}
    del values["frames"]
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
