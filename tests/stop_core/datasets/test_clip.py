"""Words that CLIP reads, out of names as datasets write them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.datasets.clip import class_words, tidied


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("brush_hair", "brush hair"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("Archery", "archery"),
        ("air drumming", "air drumming"),
        ("Pretending to [something]", "pretending to something"),
        ("Poking a hole into [some substance]", "poking a hole into some substance"),
        ("passing American football (in game)", "passing American football (in game)"),
        ("red_shape_and_a_shape_moving_left", "red shape and a shape moving left"),
        ("YMCA", "YMCA"),
    ],
)
def test_names_become_words(name: str, words: str) -> None:
    assert class_words(name) == words
    assert class_words(words) == words


@given(st.text("aé \u00a0\u200b\ufeff\u0301\t\u3000\x00\x07\ufe0f\u3164"))
def test_what_looks_alike_becomes_equal(text: str) -> None:
    tidy = tidied(text)
    assert tidied(tidy) == tidy == tidied(unicodedata.normalize("NFD", text))
    assert tidied(f" {text}\u200b\u2003") == tidy
    assert not set(tidy) & set("\u00a0\u200b\ufeff\t\u3000\x00\x07\ufe0f\u3164")
    assert "  " not in tidy
