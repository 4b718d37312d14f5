"""Metrics and predictions of a split from the outputs of a model, for every task.

Shapes: M clips and N texts of a split, C classes, E channels of the joint space, Q bank texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stop_core.evaluation.recognition import (
    confusion_matrix,
    harmonic_mean,
    predicted_classes,
    rank_of_truth,
    recognition_metrics,
)
from stop_core.evaluation.retrieval import Rerank, rank_metrics, retrieval_ranks
from stop_core.evaluation.run_over import Clips, TextBank
from stop_core.evaluation.stored_predictions import reranked_name


@dataclass(frozen=True)
class Measured:
    """Results of an evaluation."""

    metrics: dict[str, float]
    rows: dict[str, list[Any]]
    """Columns of a table with one row per clip (recognition) or per query (retrieval)."""
    confusion_CC: Tensor | None = None
    """Recognition: true classes (rows) by predicted classes (columns)."""


def measure_recognition(clips: Clips, logits_MC: Tensor) -> Measured:
    """Returns the accuracies, and one row per clip."""
    return Measured(
        recognition_metrics(logits_MC, clips.labels),
        _prediction_rows(clips, logits_MC),
        confusion_matrix(logits_MC, clips.labels),
    )


def measure_base_to_novel(clips: Clips, logits_MC: Tensor, base: Sequence[int]) -> Measured:
    """Returns base and novel accuracy, each in its own half, their harmonic mean, and the rows."""
    logits_MC = among_own_half(logits_MC, clips.labels, base)
    is_base_M = torch.isin(clips.labels, torch.tensor(base))
    right_M = rank_of_truth(logits_MC, clips.labels) == 1
    metrics = {
        f"{part}_top1": right_M[own_M].double().mean().item()
        for part, own_M in (("base", is_base_M), ("novel", ~is_base_M))
        if own_M.any()
    }
    if len(metrics) == 2:
        metrics["harmonic_mean"] = harmonic_mean(*metrics.values())
    rows = _prediction_rows(clips, logits_MC)
    rows["part"] = ["base" if one else "novel" for one in is_base_M.tolist()]
    return Measured(metrics, rows, confusion_matrix(logits_MC, clips.labels))


def among_own_half(logits_MC: Tensor, labels_M: Tensor, base: Sequence[int]) -> Tensor:
    """Returns the logits, minus infinity for base classes of novel clips and the reverse."""
    is_base_C = torch.isin(torch.arange(logits_MC.shape[1]), torch.tensor(base))
    return logits_MC.masked_fill(is_base_C != is_base_C[labels_M][:, None], -torch.inf)


def measure_retrieval(
    clips: Clips,
    video_ME: Tensor,
    texts: TextBank,
    rerank: Rerank = "none",
    query_bank: Sequence[str] = (),
) -> Measured:
    """Returns the retrieval metrics in both directions, and one row per query.

    With `rerank`, re-ranked metrics and ranks are added, under names that begin with its name, such
    as `dsl_t2v_r1` and `dsl_rank`. `query_bank` are training captions, for "qb-norm".
    """
    sentences = sentences_of(clips)
    counts_M = torch.tensor([len(captions) for captions in clips.captions])
    video_N = torch.arange(len(clips)).repeat_interleave(counts_M)
    similarity_NM = texts.rows(sentences) @ video_ME.T
    ranks = retrieval_ranks(similarity_NM, video_N)
    metrics = rank_metrics(ranks)
    rows = _query_rows(clips.video_ids, sentences, similarity_NM, video_N, ranks)
    if rerank != "none":
        name = reranked_name(rerank)
        bank_QM = texts.rows(query_bank) @ video_ME.T if query_bank else None
        ranks = retrieval_ranks(similarity_NM, video_N, rerank, bank_QM)
        metrics |= {f"{name}_{measure}": value for measure, value in rank_metrics(ranks).items()}
        # QB-Norm has no ranks of texts.
        of_videos = ranks["v2t"].tolist() if "v2t" in ranks else [None] * len(clips)
        rows[f"{name}_rank"] = [*ranks["t2v"].tolist(), *of_videos]
    return Measured(metrics, rows)


def sentences_of(clips: Clips) -> list[str]:
    """Returns the captions of all clips, N sentences."""
    return [sentence for captions in clips.captions for sentence in captions]


def _prediction_rows(clips: Clips, logits_MC: Tensor) -> dict[str, list[Any]]:
    """Returns one row per clip; top1 is the share of rows with `rank` 1."""
    probability_MC = logits_MC.softmax(-1)
    predicted_M = predicted_classes(logits_MC, clips.labels)
    return {
        "video_id": list(clips.video_ids),
        "label": clips.labels.tolist(),
        "predicted": predicted_M.tolist(),
        "rank": rank_of_truth(logits_MC, clips.labels).tolist(),
        "probability": probability_MC.gather(1, predicted_M[:, None])[:, 0].tolist(),
        "label_probability": probability_MC.gather(1, clips.labels[:, None])[:, 0].tolist(),
    }


def _query_rows(
    video_ids: Sequence[str],
    sentences: Sequence[str],
    similarity_NM: Tensor,
    video_N: Tensor,
    ranks: Mapping[str, Tensor],
) -> dict[str, list[Any]]:
    """Returns one row per query of both directions: its rank and the candidate ranked first."""
    found_N, found_M = similarity_NM.argmax(1), similarity_NM.argmax(0)
    own_N = similarity_NM.gather(1, video_N[:, None])[:, 0]
    best_M = own_N.new_full((len(video_ids),), -torch.inf).scatter_reduce(0, video_N, own_N, "amax")
    texts, videos = len(sentences), len(video_ids)
    return {
        "direction": ["t2v"] * texts + ["v2t"] * videos,
        "video_id": [video_ids[i] for i in video_N.tolist()] + list(video_ids),
        "caption": [*sentences, *[""] * videos],
        "rank": ranks["t2v"].tolist() + ranks["v2t"].tolist(),
        "similarity": own_N.tolist() + best_M.tolist(),
        "found_video_id": [video_ids[i] for i in found_N.tolist()] + [""] * videos,
        "found_caption": [""] * texts + [sentences[i] for i in found_M.tolist()],
        "found_similarity": similarity_NM.amax(1).tolist() + similarity_NM.amax(0).tolist(),
    }
