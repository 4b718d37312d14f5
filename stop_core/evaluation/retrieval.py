"""Metrics of text-to-video and video-to-text retrieval, and re-ranking methods.

All functions raise ValueError if shapes or options do not fit each other, or a video has no text.

Shapes: N texts, M videos, Q texts of a query bank.

The similarities, [N, M], are larger for better matches. The re-ranking methods divide them by a
temperature, whose default is for cosines. For CLIP's logits, which are 100 times the cosines, give
100 times the temperature.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Rerank = Literal["none", "dsl", "qb-norm"]

# The published values, for cosines: DSL uses 1 on CLIP's logits, QB-Norm uses beta = 20.
DSL_TEMPERATURE = 0.01
QB_NORM_TEMPERATURE = 1 / 20

# Number of similarities compared at a time. Counting needs 10 bytes for each, so the memory in
# addition to the matrix is at most 10 MB, or one row if that is larger.
_COMPARED = 2**20


def retrieval_ranks(
    similarity_NM: Tensor,
    video_of_text: Tensor | None = None,
    rerank: Rerank = "none",
    query_bank: Tensor | None = None,
    temperature: float | None = None,
) -> dict[str, Tensor]:
    """Returns the ranks of the texts' videos, "t2v" [N], and of the videos' texts, "v2t" [M].

    Ties count against the model: see `text_to_video_ranks` and `video_to_text_ranks`. A table must
    mark results with `rerank`. "dsl" uses all test queries at once (it is transductive) and assumes
    that they describe each video about equally often, so it does not apply to single queries.

    The ranks differ from CLIP4Clip's `compute_metrics`, which searches the true similarity in the
    sorted row and so counts a query once per candidate tied with the answer, the first time at the
    best rank: a constant matrix has R@1 = 1/M there, and 0 here.

    Args:
        similarity_NM: [N, M].
        video_of_text: the video that a text describes, [N]; default: text i describes video i.
        rerank: "none", "dsl" (`dual_softmax` in each direction), or "qb-norm" (`qb_norm`), which
            normalises by texts and so has no "v2t".
        query_bank: similarities of training captions to the same videos, [Q, M]; "qb-norm" only.
        temperature: of the re-ranking; default: its published value.
    """
    if rerank not in ("none", "dsl", "qb-norm"):
        raise ValueError(f"rerank is {rerank!r}; choose 'none', 'dsl' or 'qb-norm'")
    if rerank == "qb-norm" and query_bank is None:
        raise ValueError(
            "rerank='qb-norm' needs query_bank; give the similarities of training captions to "
            "these videos, [Q, M]"
        )
    if rerank != "qb-norm" and query_bank is not None:
        raise ValueError(f"rerank={rerank!r} uses no query_bank; leave it out, or use 'qb-norm'")
    if rerank == "none" and temperature is not None:
        raise ValueError("rerank='none' has no temperature; leave it out, or choose a re-ranking")
    if temperature is None:
        temperature = DSL_TEMPERATURE if rerank == "dsl" else QB_NORM_TEMPERATURE
    if query_bank is not None:
        reranked_NM = qb_norm(similarity_NM, query_bank, temperature=temperature)
        return {"t2v": text_to_video_ranks(reranked_NM, video_of_text)}
    if rerank == "dsl":  # one re-ranked matrix in memory at a time
        of_texts = text_to_video_ranks(dual_softmax(similarity_NM, temperature), video_of_text)
        by_video_NM = dual_softmax(similarity_NM.T, temperature).T
        of_videos = video_to_text_ranks(by_video_NM, video_of_text)
    else:
        of_texts = text_to_video_ranks(similarity_NM, video_of_text)
        of_videos = video_to_text_ranks(similarity_NM, video_of_text)
    return {"t2v": of_texts, "v2t": of_videos}


def text_to_video_ranks(similarity_NM: Tensor, video_of_text: Tensor | None = None) -> Tensor:
    """Returns the rank of every text's video among all videos, [N], from 1.

    A tie counts against the model: the rank is 1 + the number of other videos whose similarity is
    not smaller. So does a NaN, of the true video or another one.
    """
    video_N = _checked_videos(similarity_NM, video_of_text)
    true_N1 = similarity_NM.gather(1, video_N[:, None])
    ranks_N = torch.empty_like(video_N)
    for rows in _row_blocks(similarity_NM):
        # The true video is counted, too. "Not smaller", since a NaN compares false both ways.
        ranks_N[rows] = (~(similarity_NM[rows] < true_N1[rows])).sum(1)
    return ranks_N


def video_to_text_ranks(similarity_NM: Tensor, video_of_text: Tensor | None = None) -> Tensor:
    """Returns the rank of every video's best-ranked text among all texts, [M], from 1.

    All texts of a video are correct answers, and the best-ranked one counts (Kiros et al. 2014;
    Liu et al., Collaborative Experts, 2019). The rank is 1 + the number of texts of *other* videos
    whose similarity is not smaller than the best of the video's own. A tie with another video's
    text counts against the model. A NaN of an own text is ignored; another's is more similar.

    CLIP4Clip's evaluation is more lenient: several captions of one wrong video count once.
    """
    video_N = _checked_videos(similarity_NM, video_of_text)
    own_N = similarity_NM.gather(1, video_N[:, None])[:, 0]
    own_N = own_N.masked_fill(own_N.isnan(), -torch.inf)
    best_M = own_N.new_full((similarity_NM.shape[1],), -torch.inf)
    best_M = best_M.scatter_reduce(0, video_N, own_N, "amax")
    ranks_M = torch.ones_like(best_M, dtype=torch.long)
    for rows in _row_blocks(similarity_NM):
        ahead_BM = ~(similarity_NM[rows] < best_M)
        ahead_BM.scatter_(1, video_N[rows][:, None], False)
        ranks_M += ahead_BM.sum(0)
    return ranks_M


def dual_softmax(similarity_NM: Tensor, temperature: float = DSL_TEMPERATURE) -> Tensor:
    """Re-ranks by the dual softmax (DSL; Cheng et al., CAMoE, arXiv 2109.04290), [N, M].

    `similarity * softmax(similarity / temperature, over the texts)`: the weight is the preference
    of the video for this text over the other texts. This re-ranks the videos of a text; for the
    texts of a video, pass the transpose and transpose the result. The published temperature is 1 on
    CLIP's logits, 0.01 on cosines. (The published factor N changes no rank. Since the formula
    multiplies, a negative similarity *increases* with a small weight.)

    Transductive: it needs all test queries at once, which a table has to state.
    """
    _check_matrix(similarity_NM, temperature)
    similarity_NM = _at_least_float32(similarity_NM)
    return similarity_NM * (similarity_NM / temperature).softmax(0)


def qb_norm(
    similarity_NM: Tensor,
    query_bank_similarity_QM: Tensor,
    k: int = 1,
    temperature: float = QB_NORM_TEMPERATURE,
) -> Tensor:
    """Re-ranks the videos of a text by QB-Norm (Bogolin et al., CVPR 2022), [N, M].

    The dynamic inverted softmax: `exp(similarity / temperature)` is divided by its sum over the
    bank, so that a video that is similar to many texts of the bank (a hub) ranks lower. Only texts
    whose nearest video is among the `k` nearest of some text of the bank are re-ranked. The bank
    holds training captions, so this is not transductive. Published: beta = 20, the inverse of
    `temperature`, and k = 1.

    Only similarities within a row of the result are comparable. A re-ranked row is the logarithm of
    the published quotient, times `temperature` (the same order without overflow).

    Args:
        similarity_NM: of test texts to test videos, [N, M].
        query_bank_similarity_QM: of training texts to the same videos, [Q, M].
        k: number of nearest videos of a bank text that count as hubs, from 1 to M.
        temperature: 1 / beta.
    """
    _check_matrix(similarity_NM, temperature)
    bank_QM = query_bank_similarity_QM
    if bank_QM.ndim != 2 or len(bank_QM) == 0 or bank_QM.shape[1] != similarity_NM.shape[1]:
        raise ValueError(
            f"the query bank has shape {list(bank_QM.shape)} and the similarities have shape "
            f"{list(similarity_NM.shape)}; give one row per training text and one column per video"
        )
    if not 1 <= k <= bank_QM.shape[1]:
        raise ValueError(f"k is {k}; choose from 1 to the number of videos, {bank_QM.shape[1]}")
    similarity_NM = _at_least_float32(similarity_NM)
    bank_QM = _at_least_float32(bank_QM)
    is_hub_M = torch.zeros(bank_QM.shape[1], dtype=torch.bool, device=bank_QM.device)
    is_hub_M[bank_QM.topk(k, dim=1).indices.flatten()] = True
    hubness_M = temperature * (bank_QM / temperature).logsumexp(0)
    reranked_N1 = is_hub_M[similarity_NM.argmax(1)][:, None]
    return torch.where(reranked_N1, similarity_NM - hubness_M, similarity_NM)


def rank_metrics(ranks: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the metrics of the ranks of each direction.

    `t2v_r1`, `t2v_r5` and `t2v_r10` are the share of texts, from 0 to 1, whose video is among the
    first 1, 5 or 10. `t2v_median_rank` and `t2v_mean_rank` are over the ranks, from 1; the median
    of an even number is the mean of the middle two. `v2t_...` are the same for the videos.
    """
    metrics: dict[str, float] = {}
    for direction, whole in ranks.items():
        found = whole.double()
        metrics |= {f"{direction}_r{k}": (found <= k).double().mean().item() for k in (1, 5, 10)}
        metrics[f"{direction}_median_rank"] = found.quantile(0.5).item()
        metrics[f"{direction}_mean_rank"] = found.mean().item()
    return metrics


def _row_blocks(matrix: Tensor) -> list[slice]:
    """Returns slices of rows with at most `_COMPARED` similarities, or one row."""
    size = max(1, _COMPARED // matrix.shape[1])
    return [slice(start, start + size) for start in range(0, len(matrix), size)]


def _at_least_float32(matrix: Tensor) -> Tensor:
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _check_matrix(similarity_NM: Tensor, temperature: float = 1.0) -> None:
    if similarity_NM.ndim != 2 or 0 in similarity_NM.shape or not similarity_NM.is_floating_point():
        raise ValueError(
            f"the similarities are {similarity_NM.dtype} of shape {list(similarity_NM.shape)}; give"
            " a matrix of floats, one row per text and one column per video, at least one of each"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a positive one")


def _checked_videos(similarity_NM: Tensor, video_of_text: Tensor | None) -> Tensor:
    """Returns the video of every text, [N]; refuses a video without texts."""
    _check_matrix(similarity_NM)
    texts, videos = similarity_NM.shape
    if video_of_text is None:
        if texts != videos:
            raise ValueError(
                f"there are {texts} texts and {videos} videos; give video_of_text, the video that "
                "each text describes"
            )
        return torch.arange(texts, device=similarity_NM.device)
    if video_of_text.shape != (texts,):
        raise ValueError(
            f"video_of_text has shape {list(video_of_text.shape)}; give one video for each of the "
            f"{texts} texts"
        )
    strange = video_of_text[(video_of_text < 0) | (video_of_text >= videos)]
    if len(strange):
        raise ValueError(
            f"video_of_text names video {strange[0].item()}; the similarities have videos 0 to "
            f"{videos - 1}"
        )
    missing = (torch.bincount(video_of_text, minlength=videos) == 0).nonzero()
    if len(missing):
        raise ValueError(
            f"video {missing[0].item()} has no text, so it cannot be a query; remove its column or "
            "correct video_of_text"
        )
    return video_of_text.to(similarity_NM.device)
