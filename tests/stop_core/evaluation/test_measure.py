"""Metrics and rows of a split: re-ranked figures are added, and change nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from stop_core.clip.loading import load_clip
from stop_core.evaluation.measure import measure_base_to_novel, measure_retrieval, sentences_of
from stop_core.evaluation.retrieval import Rerank, rank_metrics, retrieval_ranks
from stop_core.evaluation.run_over import TextBank
from stop_core.evaluation.stored_predictions import read_scores
from stop_core.model.methods import build_method
from stop_core.settings.experiment import ExperimentConfig
from tests.stop_core.memory_clips import MemoryClips

BANK = ("a red shape", "a blue shape", "something")


@pytest.mark.parametrize(("rerank", "name"), [("dsl", "dsl"), ("qb-norm", "qb_norm")])
def test_reranked_metrics_stand_apart_and_follow_from_their_ranks(
    rerank: Rerank, name: str, tmp_path: Path
) -> None:
    clips = MemoryClips()
    model = build_method(ExperimentConfig(method="zero-shot"), load_clip("tiny"), 0)
    texts = TextBank(model, [*sentences_of(clips), *BANK])
    video_ME = F.normalize(torch.randn(10, texts.width, generator=torch.Generator().manual_seed(1)))
    bank = BANK if rerank == "qb-norm" else ()
    plain = measure_retrieval(clips, video_ME, texts)
    found = measure_retrieval(clips, video_ME, texts, rerank, bank)

    new = {k: v for k, v in found.metrics.items() if k not in plain.metrics}
    assert found.metrics == plain.metrics | new
    assert found.rows == plain.rows | {f"{name}_rank": found.rows[f"{name}_rank"]}
    counts = torch.tensor([len(captions) for captions in clips.captions])
    video_N = torch.arange(10).repeat_interleave(counts)
    similarity_NM = texts.rows(sentences_of(clips)) @ video_ME.T
    bank_QM = texts.rows(BANK) @ video_ME.T if bank else None
    expected = rank_metrics(retrieval_ranks(similarity_NM, video_N, rerank, bank_QM))
    assert new == {f"{name}_{measure}": value for measure, value in expected.items()}
    assert new[f"{name}_t2v_mean_rank"] != plain.metrics["t2v_mean_rank"]
    # The statistics of a table read the ranks from the stored rows.
    file = tmp_path / "predictions.parquet"
    pd.DataFrame({"split": "test", **found.rows}).to_parquet(file)
    for measure, value in {**plain.metrics, **new}.items():
        if not measure.endswith("median_rank"):
            (score,) = read_scores([file], [f"test/{measure}"])[f"test/{measure}"].scores()
            assert score == pytest.approx(value)


def test_a_query_is_stored_with_its_best_own_candidate_and_the_best_of_all() -> None:
    clips = MemoryClips()
    model = build_method(ExperimentConfig(method="zero-shot"), load_clip("tiny"), 0)
    texts = TextBank(model, sentences_of(clips))
    video_ME = F.normalize(torch.randn(10, texts.width, generator=torch.Generator().manual_seed(1)))
    rows = pd.DataFrame(measure_retrieval(clips, video_ME, texts).rows).set_index("direction")
    embedded = texts.rows(sentences_of(clips)).split([len(own) for own in clips.captions])
    for number, query in enumerate(rows.loc["v2t"].to_dict("records")):
        similarities = [part @ video_ME[number] for part in embedded]
        best = max(float(of_video.max()) for of_video in similarities)
        assert query["similarity"] == pytest.approx(float(similarities[number].max()))
        assert query["found_similarity"] == pytest.approx(best)
    for query in rows.loc["t2v"].to_dict("records"):
        is_first = query["similarity"] == pytest.approx(query["found_similarity"])
        assert is_first == (query["rank"] == 1)


def test_a_table_without_reranked_ranks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    rows = {"split": ["test"], "direction": ["t2v"], "video_id": ["a"], "rank": [1]}
    pd.DataFrame(rows).to_parquet(file)
    with pytest.raises(ValueError, match="has no test/dsl_t2v_r1: the column 'dsl_rank'"):
        read_scores([file], ["test/dsl_t2v_r1"])


def test_base_and_novel_clips_are_each_recognised_among_their_own_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5, generator=generator)
    labels = torch.randint(5, (40,), generator=generator)
    clips: Any = SimpleNamespace(labels=labels, video_ids=[f"v{i}" for i in range(40)])
    base, novel = [0, 3], [1, 2, 4]
    right: dict[str, list[bool]] = {"base": [], "novel": []}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        part, among = ("base", base) if label in base else ("novel", novel)
        right[part].append(max(among, key=row.__getitem__) == label)
    found = measure_base_to_novel(clips, logits, base)
    first, second = (sum(some) / len(some) for some in right.values())
    assert 0 < first < 1
    assert found.metrics == {
        "base_top1": pytest.approx(first),
        "novel_top1": pytest.approx(second),
        "harmonic_mean": pytest.approx(2 * first * second / (first + second)),
    }
    assert found.rows["part"] == ["base" if n in base else "novel" for n in labels.tolist()]
    ranked = [rank == 1 for rank in found.rows["rank"]]
    assert sum(ranked) == sum(right["base"]) + sum(right["novel"])
    only = [n for n, label in enumerate(labels.tolist()) if label in base]
    clips = SimpleNamespace(labels=labels[only], video_ids=["v"] * len(only))
    metrics = measure_base_to_novel(clips, logits[only], base).metrics
    assert metrics == {"base_top1": pytest.approx(first)}
