"""Whatever a decoder does to its process, the others see frames or a reason."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess, decode_clip, process

WriteVideo = Callable[..., Path]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{i}.mp4", frames=9 + i, seed=i) for i in range(5)]


@pytest.fixture
def decoder() -> Iterator[DecodeProcess]:
    process = DecodeProcess(4, 32, timeout=30)
    yield process
    process.close()


def _results(decoder: DecodeProcess, paths: list[Path]) -> list[np.ndarray | str]:
    """Copies, as the frames of one clip are gone with the next."""
    return [
        str(result) if isinstance(result, DecodeError) else result.frames.copy()
        for result in decoder.decode(paths)
    ]


def _on_request(
    monkeypatch: pytest.MonkeyPatch, name: str, what: signal.Signals, times: int
) -> list[int]:
    """Sends a signal to the child as it begins to decode the file `name`."""
    request, sent = process._Child.request, []

    def and_signal(self: process._Child, path: Path, slot: int, timeout: float) -> None:
        if path.name == name and len(sent) < times:
            sent.append(self._process.pid)
            os.kill(self._process.pid, what)
        request(self, path, slot, timeout)

    monkeypatch.setattr(process._Child, "request", and_signal)
    return sent


def test_frames_and_facts_are_those_of_decoding_here(
    decoder: DecodeProcess, clips: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "no.avi").write_text("not a video\n" * 50)
    paths = [clips[0], tmp_path / "no.avi", *clips[1:], tmp_path / "gone.mp4"]
    for path, there in zip(paths, decoder.decode(paths), strict=True):
        if path in clips:
            assert isinstance(there, DecodedClip)
            here = decode_clip(path, 4, 32)
            assert np.array_equal(there.frames, here.frames)
            for name in ("frame_index", "frame_time"):
                assert np.array_equal(getattr(there, name), getattr(here, name))
            for name in ("num_frames", "fps", "duration", "width", "height", "decoder"):
                assert getattr(there, name) == getattr(here, name)
        else:
            with pytest.raises(DecodeError) as caught:
                decode_clip(path, 4, 32)
            assert str(there) == str(caught.value)


def test_the_last_clips_stay_good_for_as_long_as_was_asked_for(
    clips: list[Path], tmp_path: Path
) -> None:
    """Failures between them take no room, and a clip more is decoded meanwhile."""
    bad = tmp_path / "no.avi"
    bad.write_text("not a video\n" * 50)
    paths = [clips[0], bad, clips[1], clips[2], bad, bad, clips[3], clips[4], clips[0]]
    good = [path for path in paths if path != bad]
    decoder = DecodeProcess(4, 32, kept=3)
    last: deque[tuple[Path, DecodedClip]] = deque(maxlen=3)
    for path, result in zip(paths, decoder.decode(paths), strict=True):
        if isinstance(result, DecodedClip):
            last.append((path, result))
        for earlier, clip in last:
            assert np.array_equal(clip.frames, decode_clip(earlier, 4, 32).frames)
    assert [path for path, _ in last] == good[-3:]
    decoder.close()


def test_a_decoder_that_hangs_costs_one_clip_and_its_deadline(
    clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = DecodeProcess(4, 32, timeout=2)
    expected = _results(decoder, clips)
    _on_request(monkeypatch, clips[2].name, signal.SIGSTOP, 1)
    began = time.monotonic()
    results = _results(decoder, clips)
    assert 2 <= time.monotonic() - began < 30
    assert results[2] == "timed out after 2 s"
    for i in (0, 1, 3, 4):
        assert np.array_equal(results[i], expected[i])
    decoder.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_decoder_that_crashes_is_tried_once_more(
    decoder: DecodeProcess, clips: list[Path], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    expected = _results(decoder, clips)
    sent = _on_request(monkeypatch, clips[1].name, signal.SIGSEGV, times)
    results = _results(decoder, clips)
    assert len(set(sent)) == times, "every crash was in a separate process"
    if times == 2:
        assert results.pop(1) == "the decoder crashed (signal 11)"
        expected.pop(1)
    assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("times", [2, 3])
def test_a_decoder_that_is_killed_from_outside_is_no_fault_of_the_clip(
    decoder: DecodeProcess, clips: list[Path], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    # The law is for any limit above that of crashes; each attempt starts a process.
    monkeypatch.setattr(process, "_MOST_KILLS", 3)
    expected = _results(decoder, clips)
    _on_request(monkeypatch, clips[1].name, signal.SIGKILL, times)
    results = _results(decoder, clips)
    if times == 3:  # unless it is the clip each time
        assert "killed 3 times" in str(results.pop(1))
        expected.pop(1)
    assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_a_child_that_has_grown_is_replaced_between_clips(
    decoder: DecodeProcess, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _results(decoder, clips)
    reply, pids = process._Child.reply, set()

    def worn(self: process._Child) -> dict[str, object]:
        pids.add(self._process.pid)
        return reply(self) | {"worn": len(pids) < 3}

    monkeypatch.setattr(process._Child, "reply", worn)
    results = _results(decoder, clips)
    assert len(pids) == 3
    assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_answers_that_nobody_waited_for_are_not_given_to_others(
    decoder: DecodeProcess, clips: list[Path]
) -> None:
    expected = _results(decoder, clips)
    next(decoder.decode(clips))  # left while the second clip is being decoded
    results = _results(decoder, clips[3:])
    assert all(np.array_equal(a, b) for a, b in zip(results, expected[3:], strict=True))


def test_a_process_that_cannot_start_is_no_fault_of_the_clip(
    clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with pytest.raises(OSError, match=r"the decoding process does not start.*exit status 1"):
        list(DecodeProcess(4, 32).decode(clips))
