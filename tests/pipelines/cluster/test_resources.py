"""The resources that a training requests from the cluster."""

from dataclasses import replace

import pytest

from pipelines.cluster.resources import Resources, _room

FOUR = Resources(workers=4, gpus_per_worker=1)


def test_training_starts_with_min_workers_if_there_is_room_for_them() -> None:
    two_gpus = {"CPU": 16.0, "GPU": 2.0}
    assert _room(FOUR, two_gpus) == 0
    assert _room(replace(FOUR, min_workers=2), two_gpus) == 1
    assert _room(replace(FOUR, min_workers=3), two_gpus) == 0


def test_ray_train_gets_a_range_only_with_min_workers() -> None:
    assert replace(FOUR, min_workers=1).scaling().num_workers == (1, 4)
    assert FOUR.scaling().num_workers == replace(FOUR, min_workers=4).scaling().num_workers == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("min_workers", 0),
        ("min_workers", 5),
        ("restarts", -1),
        ("cpus_per_worker", 0),
        ("gpus_per_worker", -1),
        ("micro_batch", 0),
        ("checkpoint_minutes", 0),
    ],
)
def test_number_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(FOUR, **{name: value})
