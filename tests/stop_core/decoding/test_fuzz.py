"""However a file is damaged, it ends as frames or as a reason."""

from pathlib import Path

import pytest

from stop_core.decoding import Decoder
from tests.stop_core.decoding.fuzz import fuzz, write_seeds


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_every_damaged_file_ends_as_frames_or_as_a_reason(tmp_path: Path, decoder: Decoder) -> None:
    ends = fuzz(write_seeds(tmp_path), count=140, seed=1, timeout=20, wanted=decoder)
    assert 0 < ends["frames"] < 140
    assert len(ends) > 5
