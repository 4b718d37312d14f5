"""The decoding process: separate, so that no video can crash the process that writes the cache.

    python -m stop_core.decoding.child OPTIONS REQUESTS REPLIES MEMORY

OPTIONS is a JSON object with the fields of `_Options`. REQUESTS and REPLIES are pipes with one JSON
message per line. MEMORY is a memory file with room for `slots` clips; only frames are written
there. `DecodeProcess` starts this process.
"""

import json
import math
import mmap
import os
import resource
import signal
import sys
from dataclasses import dataclass, fields, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodedClip, DecodeError, Decoder
from stop_core.decoding.decode import decode_clip
from stop_core.decoding.resizing import crop_frames

# Address space in addition to that of the libraries. A clip of twelve 8K frames needs half of it.
MEMORY_LIMIT = 2 << 30
# Decoders leak memory: the process asks to be replaced after it has grown by this much, so that
# every clip has about the same memory available.
_MOST_GROWTH = MEMORY_LIMIT // 4


@dataclass(frozen=True)
class _Options:
    decoder: Decoder
    frames: int
    size: int
    crop: bool
    hashed: bool
    slots: int
    timeout: float


def main() -> None:
    """Answers requests until the parent closes the pipe."""
    options = _Options(**json.loads(sys.argv[1]))
    requests, replies, memory = (int(word) for word in sys.argv[2:])
    slots = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(options.slots, -1)
    # Compiles the loops before the deadline and the memory limit apply.
    crop_frames(np.zeros((1, 4, 6, 3), np.uint8), 8)
    before = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_LIMIT, before + MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(requests, "rb") as lines, open(replies, "wb", buffering=0) as answers:  # noqa: PTH123
        answers.write(b"ready\n")
        # Native code prints a line for every file that it cannot open.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        for line in lines:
            request = json.loads(line)
            # Ends this process if a decoder hangs after the parent has exited. An alarm works
            # even while native code holds the GIL.
            signal.alarm(math.ceil(options.timeout) + 5)
            answer = _answer(Path(request["path"]), options, slots[request["slot"]])
            signal.alarm(0)
            answer["worn"] = _address_space() - before > _MOST_GROWTH
            answers.write(json.dumps(answer).encode() + b"\n")


def _answer(path: Path, options: _Options, out: NDArray[np.uint8]) -> dict[str, Any]:
    o = options
    try:
        clip = decode_clip(path, o.frames, o.size, o.crop, out, o.decoder)
        if o.hashed:  # within the deadline: a sparse file can be larger than any disk
            with path.open("rb") as file:
                clip = replace(clip, source_sha256=file_digest(file, "sha256").hexdigest())
    except (DecodeError, OSError) as error:
        # The OSError is about this video: no other file is read or written here.
        return {"error": str(error) or type(error).__name__}
    except MemoryError:
        return {"error": f"needs more than {MEMORY_LIMIT >> 20} MiB of memory"}
    except Exception as error:  # a damaged file can make a decoder fail in any way
        return {"error": " ".join(f"unexpected {type(error).__name__}: {error}".split())}
    return {"clip": small_fields(clip), "shape": clip.frames.shape}


def small_fields(clip: DecodedClip) -> dict[str, Any]:
    """Returns all fields except the frames as JSON values, which keep every bit of the numbers."""
    values = {field.name: getattr(clip, field.name) for field in fields(clip)}
    del values["frames"]
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
