"""Decodes in a separate process, with a deadline and a memory limit.

Native code can hang forever on a file with a wrong length, while it holds the GIL; it can crash on
a damaged file; and a small file can ask for a lot of memory. In a separate process, each of these
fails one clip. The process is reused, because starting one takes longer than decoding most clips.

    ABSENT --first clip--> IDLE --request--> BUSY --reply--> IDLE
       ^                                      |  |
       +---- killed at the deadline ----------+  +---- exits or crashes: the clip is retried

While the caller processes a clip, the next one is already being decoded.
"""

import json
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stop_core.decoding.clip import DecodedClip, DecodeError, Decoder
from stop_core.decoding.decode import most_bytes
from stop_core.decoding.sampling import SEGMENTS, Sampling

# Seconds. Every valid clip takes less, even a film of two hours.
DECODE_TIMEOUT = 120.0
_START_TIMEOUT = 300.0
# Attempts per clip. A SIGKILL from outside is not the fault of the clip, unless it always hits the
# same one.
_MOST_CRASHES = 2
_MOST_KILLS = 5
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class DecodeProcess:
    """A child process that decodes clips of one shape, and is replaced when it fails."""

    frames: int
    """T of every clip."""
    size: int
    """Edge of the crop, in pixels."""
    timeout: float = DECODE_TIMEOUT
    """Seconds allowed per clip."""
    crop: bool = True
    """False returns uncropped frames whose short side is `size`."""
    kept: int = 1
    """Number of yielded clips whose frames stay valid: the most recent ones."""
    decoder: Decoder = "auto"
    hashed: bool = False
    """Whether to compute the SHA-256 of every file, within the same deadline."""
    sampling: Sampling = SEGMENTS
    owner: int = field(default_factory=os.getpid, init=False)
    _child: "_Child | None" = field(default=None, init=False, compare=False)
    _busy: bool = field(default=False, init=False, compare=False)

    def decode(self, paths: Iterable[Path]) -> Iterator[DecodedClip | DecodeError]:
        """Yields a clip or its failure for every path, in order; OSError if no process starts."""
        if self._busy:  # an earlier iteration was abandoned: its answer must not be taken for ours
            self.close()
        waiting = iter(paths)
        path, slot = next(waiting, None), 0
        # The slot that was freed first is used first, because the caller may still read the last.
        free = deque(range(1, self.kept + 1))
        if path is not None:
            self._request(path, slot)
        while path is not None:
            answer = self._reply(path, slot)
            result: DecodedClip | DecodeError = DecodeError(answer.get("error", ""))
            if self._child is not None and "clip" in answer:
                result = _clip(answer["clip"], self._child.slots[slot], answer["shape"])
                free.append(slot)
            else:
                free.appendleft(slot)
            path = next(waiting, None)
            if path is not None:
                slot = free.popleft()
                self._request(path, slot)
            yield result

    def close(self) -> None:
        """Terminates the child, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None
        self._busy = False

    def _request(self, path: Path, slot: int) -> None:
        if self._child is None:
            self._child = _Child(self)
        self._child.request(path, slot, self.timeout)
        self._busy = True

    def _reply(self, path: Path, slot: int) -> dict[str, Any]:
        crashes = kills = 0
        while True:
            assert self._child is not None
            try:
                answer = self._child.reply()
            except TimeoutError:
                self.close()
                return {"error": f"timed out after {self.timeout:g} s"}
            except EOFError:
                how = self._child.how_it_ended()
                self.close()
                if how == f"signal {signal.SIGKILL.value}":
                    kills += 1
                else:
                    crashes += 1
                if crashes == _MOST_CRASHES:
                    return {"error": f"the decoder crashed ({how})"}
                if kills == _MOST_KILLS:
                    times = f"the decoder was killed {kills} times"
                    return {"error": f"{times}: the machine may be short of memory"}
                # Try again in a fresh process: earlier clips may have caused the crash.
                self._request(path, slot)
                continue
            self._busy = False
            if answer.pop("worn"):
                # The new child shares the same memory, so frames already yielded stay valid.
                self._child.end()
                self._child = _Child(self, self._child)
            return answer


class _Child:
    """One child process and the memory that it shares with the parent."""

    def __init__(self, wanted: DecodeProcess, before: "_Child | None" = None) -> None:
        if before is None:
            memory = os.memfd_create("clips", os.MFD_CLOEXEC)
            # Sized for the largest uncropped frames; pages that are never written take no memory.
            slots = wanted.kept + 1
            os.ftruncate(memory, slots * most_bytes(wanted.frames, wanted.size, wanted.crop))
            self._memory = os.fdopen(memory, "rb+")
            room = mmap.mmap(memory, 0)
            self.slots: NDArray[np.uint8] = np.frombuffer(room, np.uint8).reshape(slots, -1)
        else:
            self._memory, self.slots = before._memory, before.slots
        self._connection, theirs = Pipe()
        handed = (theirs.fileno(), self._memory.fileno())
        options = {f.name: getattr(wanted, f.name) for f in fields(DecodeProcess) if f.init}
        words = [json.dumps(options), *map(str, handed)]
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        with theirs, tempfile.TemporaryFile() as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "stop_core.decoding.child", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=handed,
                env=os.environ | {"PYTHONPATH": path},
                # Ctrl-C in the terminal must reach the parent only.
                start_new_session=True,
            )
            theirs.close()
            self._deadline = time.monotonic() + _START_TIMEOUT
            try:
                self._message()
            except (EOFError, TimeoutError) as error:
                ended = isinstance(error, EOFError)
                how = self.how_it_ended() if ended else f"no answer in {_START_TIMEOUT:.0f} s"
                self.end()
                stderr.seek(0)
                lines = stderr.read().decode(errors="replace").strip().splitlines()
                reason = f": {lines[-1]}" if lines else ""
                raise OSError(f"the decoding process does not start ({how}){reason}") from error

    def request(self, path: Path, slot: int, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        # `reply` raises EOFError if the child has exited.
        with suppress(ConnectionError):
            self._connection.send_bytes(json.dumps({"path": str(path), "slot": slot}).encode())

    def reply(self) -> dict[str, Any]:
        """Returns the answer; TimeoutError after the deadline, EOFError if the child has exited."""
        return cast(dict[str, Any], json.loads(self._message()))

    def how_it_ended(self) -> str:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """Kills the process. The memory is freed when no array refers to it."""
        self._connection.close()
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _message(self) -> bytes:
        if not self._connection.poll(max(0.0, self._deadline - time.monotonic())):
            raise TimeoutError
        try:
            return self._connection.recv_bytes()
        except OSError as error:  # it exited in the middle of a message
            raise EOFError from error


def _clip(values: dict[str, Any], room: NDArray[np.uint8], shape: list[int]) -> DecodedClip:
    values["frame_index"] = np.array(values["frame_index"], np.int32)
    values["frame_time"] = np.array(values["frame_time"], np.float32)
    return DecodedClip(frames=room[: math.prod(shape)].reshape(shape), **values)
