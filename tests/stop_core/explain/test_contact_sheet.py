"""Tests of contact sheets."""

import numpy as np

from stop_core.explain.contact_sheet import Strip, draw_contact_sheet


def test_a_sheet_has_the_frames_of_each_video_in_its_row() -> None:
    red, blue = (np.zeros((2, 8, 8, 3), np.uint8) for _ in range(2))
    red[..., 0] = blue[..., 2] = 255
    strips = [Strip("a" * 300, "0.5", red), Strip("gone", "no such file", None)]
    sheet = np.asarray(
        draw_contact_sheet("what to find", [*strips, Strip("b", "0.1", blue)], 3, 16)
    )
    is_red, is_blue = ((sheet == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
    assert is_red.sum() == is_blue.sum() == 2 * 16 * 16, "two frames, enlarged"
    assert np.nonzero(is_red)[0].max() < np.nonzero(is_blue)[0].min()
