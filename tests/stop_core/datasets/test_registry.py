"""The registry: a dataset by name, and the sentence of a class."""

import pytest

from stop_core.datasets import get_dataset


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected one of activitynet, csv.* ucf101, vatex"):
        get_dataset("hmbd51")
