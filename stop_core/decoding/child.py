"""The decoding process: separate, so that no video can crash the process that writes the cache.

    python -m stop_core.decoding.child OPTIONS CONNECTION MEMORY

OPTIONS is a JSON object with the arguments of `DecodeProcess`, which starts this process.
CONNECTION is a pipe for messages in JSON. MEMORY is a memory file with room for the clips of
`kept`, and one more; only frames are written there.
"""

import json
import math
import mmap
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import fields, replace
from hashlib import file_digest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodeError
from stop_core.decoding.decode import decode_clip
from stop_core.decoding.resizing import resize_frames

# Address space in addition to that of the libraries. A clip of twelve 8K frames needs half of it.
MEMORY_LIMIT = 2 << 30
# Decoders leak memory: the process asks to be replaced after it has grown by this much, so that
# every clip has about the same memory available.
_MOST_GROWTH = MEMORY_LIMIT // 4


def main() -> None:
    """Answers requests until the parent closes the connection."""
    options = json.loads(sys.argv[1])
    parent, memory = Connection(int(sys.argv[2])), int(sys.argv[3])
    slots = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(options["kept"] + 1, -1)
    # Compiles the loops before the deadline and the memory limit apply.
    resize_frames(np.zeros((1, 4, 6, 3), np.uint8), 8)
    before = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_LIMIT, before + MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent.send_bytes(b"ready")
    # Native code prints a line for every file that it cannot open.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(parent.recv_bytes())
            # Ends this process if a decoder hangs after the parent has exited. An alarm works
            # even while native code holds the GIL.
            signal.alarm(math.ceil(options["timeout"]) + 5)
            answer = _answer(Path(request["path"]), options, slots[request["slot"]])
            signal.alarm(0)
            answer["worn"] = _address_space() - before > _MOST_GROWTH
            parent.send_bytes(json.dumps(answer).encode())


def _answer(path: Path, options: dict[str, Any], out: NDArray[np.uint8]) -> dict[str, Any]:
    wanted = {name: options[name] for name in ("frames", "size", "crop", "decoder", "sampling")}
    try:
        clip = decode_clip(path, out=out, **wanted)
        if options["hashed"]:  # within the deadline: a sparse file can be larger than any disk
            with path.open("rb") as file:
                clip = replace(clip, source_sha256=file_digest(file, "sha256").hexdigest())
    except (DecodeError, OSError) as error:
        # The OSError is about this video: no other file is read or written here.
        return {"error": str(error) or type(error).__name__}
    except MemoryError:
        return {"error": f"needs more than {MEMORY_LIMIT >> 20} MiB of memory"}
    except Exception as error:  # a damaged file can make a decoder fail in any way
        return {"error": " ".join(f"unexpected {type(error).__name__}: {error}".split())}
    # JSON keeps every bit of the numbers.
    values = {field.name: getattr(clip, field.name) for field in fields(clip)}
    shape = values.pop("frames").shape
    small = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return {"clip": small, "shape": shape}


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
