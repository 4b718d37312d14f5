"""Evaluates a trained model on a split of any frame cache; an interruption loses at most a part.

Shapes: M clips of the split, X outputs per clip (logits or the channels of an embedding).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stop_core.cache import CachedClips, FrameCache
from stop_core.cache.fetching import LocalShards
from stop_core.cache.manifest import Manifest
from stop_core.cache.views import View
from stop_core.datasets import Split
from stop_core.evaluation.measure import (
    Measured,
    among_own_half,
    measure_base_to_novel,
    measure_recognition,
    measure_retrieval,
    sentences_of,
)
from stop_core.evaluation.retrieval import Rerank
from stop_core.evaluation.run_over import EVALUATION_BATCH, TextBank, run_over
from stop_core.settings.methods import METHODS
from stop_core.storage.atomic import appearing
from stop_core.storage.paths import StoragePath, local_file
from stop_core.trained_model.files import refuse_other_classes
from stop_core.trained_model.model import TrainedModel

_BATCHES_OF_A_PART = 8


def evaluate(
    trained: TrainedModel,
    cache: FrameCache,
    split: Split,
    views: Sequence[View],
    parts: StoragePath,
    *,
    templates: tuple[str, ...],
    rerank: Rerank = "none",
    on_part: Callable[[int], None] = lambda clips: None,
) -> Measured:
    """Returns the metrics and predictions of a model on a split, by the task of the cache.

    A base-to-novel model is measured on base and novel classes of its own dataset separately.
    The probabilities of the classes are averaged over the views of a clip; for retrieval, the
    similarities are. Raises ValueError if the model or the views do not suit the cache.

    Args:
        trained: the model; it is given the classes of the cache.
        cache: verified.
        split: of the cache.
        views: the views of every clip.
        parts: folder for the outputs of this model on this cache; finished parts are reused.
        templates: sentences with {} for a class, as `templates_for` returns them.
        rerank: for retrieval; "qb-norm" uses all captions of the training split as its bank.
        on_part: is called with the number of clips of every finished part.
    """
    manifest, clips = cache.manifest, cache.split(split)
    refuse_other_classes(trained, manifest)
    base = _base_labels(trained, manifest)
    if manifest.task == "retrieval":
        bank = sentences_of(cache.split("train")) if rerank == "qb-norm" else []
        texts = TextBank(trained.model, [*sentences_of(clips), *bank])
        work, width = trained.embed_videos, texts.width
    else:
        if METHODS[trained.config.method].reads_text:
            trained = trained.with_labels(manifest.class_names, templates)
        work, width = trained.logits, len(manifest.class_names)
    batch = min(trained.config.batch_size, EVALUATION_BATCH)
    outputs_VMX = []
    for number, view in enumerate(views):
        rows = []
        for start in range(0, len(clips), batch * _BATCHES_OF_A_PART):
            part = _Part(clips, view, range(len(clips))[start : start + batch * _BATCHES_OF_A_PART])
            path = parts / f"{number}-{start}.safetensors"
            if not path.is_file():
                outputs = run_over(work, part, trained.model, width, batch)
                with appearing(path) as staging:
                    save_file({"outputs": outputs}, staging)
            with local_file(path) as here:
                rows.append(load_file(here)["outputs"])
            on_part(len(part))
        outputs_VMX.append(torch.cat(rows))
    if manifest.task == "retrieval":
        return measure_retrieval(clips, torch.stack(outputs_VMX).mean(0), texts, rerank, bank)
    if base:
        halves_VMC = [among_own_half(rows_MC, clips.labels, base) for rows_MC in outputs_VMX]
        return measure_base_to_novel(clips, mean_logits(halves_VMC), base)
    return measure_recognition(clips, mean_logits(outputs_VMX))


def _base_labels(trained: TrainedModel, manifest: Manifest) -> list[int]:
    """Returns the labels that a base-to-novel model was trained on; none if there are no others."""
    names, own = manifest.class_names, manifest.dataset == trained.provenance.dataset
    is_base = own and trained.config.protocol.classes == "base"
    base = [n for n, name in enumerate(names) if is_base and name in (trained.labels or ())]
    return base if len(base) < len(names) else []


def mean_logits(views_VMC: Sequence[Tensor]) -> Tensor:
    """Returns the logarithm of the mean probabilities of the views, [M, C]; of one, its logits."""
    if len(views_VMC) == 1:
        return views_VMC[0]
    # In float32, the small probabilities of a confident prediction would become 0 and tie.
    return torch.stack(list(views_VMC)).double().softmax(-1).mean(0).log()


@dataclass(frozen=True)
class _Part:
    clips: CachedClips
    view: View
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        frames, size = self.view.check(*self.clips.shape[:2])
        return frames, size, size, 3

    @property
    def source(self) -> LocalShards | None:
        return self.clips.source

    @property
    def shards(self) -> list[str]:
        return [self.clips.shards[number] for number in self.numbers]

    def read(self, indices: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        return self.clips.read([self.numbers[index] for index in indices], self.view, out)
