"""Published numbers are read exactly, and a bad line is reported by its number."""

from pathlib import Path

import pytest

from pipelines.cli.folders import SWEEPS
from pipelines.tables.published import read_published


def test_the_msrvtt_table_has_a_source_for_each_row() -> None:
    rows = read_published(SWEEPS / "published" / "msrvtt_vit_b32.csv")
    by_method = {row.method: row for row in rows}
    assert len(rows) == len(by_method) == 16
    assert {row.dataset for row in rows} == {"msrvtt"}
    assert all("arXiv:2503.15973" in row.source for row in rows)
    stop = by_method["STOP"]
    assert stop.title == "STOP (CVPR'25)"
    assert stop.parameters == 7_530_000
    assert stop.measures["test/t2v_r1"] == pytest.approx(0.477)
    assert stop.measures["test/v2t_mean_rank"] == 12.2
    # Unpublished values are absent, not zero.
    assert set(by_method["Efficient Prompt"].measures) == {"test/t2v_r1", "test/t2v_r5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset,method,top1\nd,m,50\n", "no column 'source'"),
        ("dataset,method,source,topl\nd,m,s,50\n", "unknown column 'topl'"),
        ("dataset,method,source,top1\n", "no rows"),
        ("dataset,method,source,top1\nd,m,,50\n", "line 2: source is empty"),
        ("dataset,method,source,top1\nd,m,s,\n", "line 2 has no measure"),
        ("dataset,method,source,top1\nd,m,s,good\n", "line 2: top1 must be a number"),
        ("dataset,method,source,top1\nd,m,s,50\nd,m,s,150\n", "line 3: top1 must be in percent"),
        ("dataset,method,source,t2v_mnr\nd,m,s,0.5\n", "line 2: t2v_mnr must be at least 1"),
        ("dataset,method,source,top1\nd,m,s, 2024,50\n", "line 2 has not as many fields"),
        ("dataset,method,source,top1\nd,m,s\n", "line 2 has not as many fields"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_published(file)
