"""A decoder that fails for given files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from stop_core.cache import writing
from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess


class FlakyDecoder(DecodeProcess):
    """Fails to decode some files, for a reason that is not in the files."""

    bad: frozenset[str | int] = frozenset()
    """Names of the files; for copies of remote files, which have no name, indices of `asked`."""

    def decode(self, paths: Iterable[Path]) -> Iterator[DecodedClip | DecodeError]:
        paths = list(paths)
        for path, result in zip(paths, super().decode(paths), strict=True):
            bad = self.bad & {path.name, len(self.asked)}
            self.asked.append(path.name)
            yield DecodeError("timed out after 1 s") if bad else result

    asked: list[str]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyDecoder]:
    decoder = FlakyDecoder(4, 16, kept=16, hashed=True)  # the rows of a group
    decoder.asked = []
    monkeypatch.setattr(writing, "_decode_process", lambda config, timeout: decoder)
    yield decoder
    decoder.close()
