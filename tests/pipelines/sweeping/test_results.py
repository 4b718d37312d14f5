"""The table of the trials."""

import pytest

from pipelines.sweeping.results import print_table


@pytest.mark.parametrize("count", [3, 60])
def test_no_value_of_a_table_is_broken(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"setting{n}" for n in range(count)]
    values = [f"0.{n:05d}" for n in range(count)]
    print_table("trials", ["trial", *settings], [["trial-0007", *values]], settings)
    shown = capsys.readouterr().out
    assert "trial-0007" in shown
    for name, value in zip(settings, values, strict=True):
        assert (name in shown and value in shown) if count == 3 else f"{name}={value}" in shown
