"""Training objectives and their evaluation: recognition by classes, retrieval by captions.

Shapes: B clips of this process's share of a batch, M clips and N texts of a split, C classes,
E channels of the joint text-video space.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from stop_core.cache.manifest import Manifest
from stop_core.datasets.protocols import base_labels
from stop_core.evaluation.measure import (
    Measured,
    measure_base_to_novel,
    measure_recognition,
    measure_retrieval,
    sentences_of,
)
from stop_core.evaluation.run_over import EVALUATION_BATCH, Clips, TextBank, device_of, run_over
from stop_core.model.class_texts import ClassTexts
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast
from stop_core.runtime.distributed import all_rows
from stop_core.settings.class_templates import class_sentences
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.training.augmentation import mixing
from stop_core.training.losses import contrastive_loss, recognition_loss

_Number = TypeVar("_Number", int, Tensor)


class Objective(ABC):
    """The loss of a batch and the metrics of a split.

    The loss has two steps, so that a batch can be embedded in parts: `outputs` of a part, one row
    per clip, and `loss` of all rows of this process.
    """

    chosen_by: str
    """The validation metric that selects the best epoch."""
    additive: bool
    """Whether the loss of a batch is the sum of the losses of its parts."""
    evaluation_batch: int = EVALUATION_BATCH
    """Number of clips that are evaluated at a time."""

    def __init__(self, model: VideoModel, config: ExperimentConfig, clips: Clips) -> None:
        self.model = model
        self.config = config
        self.clips = clips

    @abstractmethod
    def outputs(self, frames: Tensor, clips: Sequence[int], epoch: int) -> Tensor:
        """Frames of these training clips -> one row per clip, [B, X], with its graph."""

    @abstractmethod
    def no_outputs(self) -> Tensor:
        """Returns the rows of an empty share, [0, X]."""

    @abstractmethod
    def loss(self, outputs: Tensor, clips: Sequence[int], epoch: int, total: int) -> Tensor:
        """Returns this process's part of the loss of a batch of `total` clips, a scalar."""

    def probabilities(self, frames: Tensor) -> Tensor | None:
        """Frames [B, T, S, S, 3] -> probabilities of the classes, [B, C]; None without classes."""
        return None

    @abstractmethod
    def measure(self, clips: Clips) -> Measured:
        """Evaluates the model on every clip of a split once; the same result on every process."""


class Recognition(Objective):
    """Cross-entropy over the classes; `texts` are those that are trained on."""

    additive = True
    chosen_by = "top1"

    def __init__(
        self,
        model: VideoModel,
        config: ExperimentConfig,
        clips: Clips,
        texts: ClassTexts,
        all_texts: ClassTexts | None = None,
    ) -> None:
        super().__init__(model, config, clips)
        self.texts = texts
        self.all_texts = all_texts or texts

    @cached_property
    def targets(self) -> Tensor:
        """The positions of the classes of the training clips among `texts`, [N]."""
        return self.clips.labels

    def outputs(self, frames: Tensor, clips: Sequence[int], epoch: int) -> Tensor:
        """Returns logits, [B, C]."""
        return self._logits(frames, None)

    def no_outputs(self) -> Tensor:
        """Returns the logits of an empty share, [0, C]."""
        return torch.empty(0, len(self.texts), device=device_of(self.model))

    def loss(self, outputs: Tensor, clips: Sequence[int], epoch: int, total: int) -> Tensor:
        """Returns this part's share of the mean cross-entropy."""
        targets = self.targets[list(clips)]
        if self.config.training.mixup:
            targets = self._mixed(clips, epoch)
        targets = targets.to(outputs.device, non_blocking=True)
        return recognition_loss(outputs, targets, total, self.config.training.label_smoothing)

    def _mixed(self, clips: Sequence[int], epoch: int) -> Tensor:
        """Returns the probabilities of the classes of clips that mixup mixes, [B, C]."""
        target_BC = torch.zeros(len(clips), len(self.texts))
        for row, clip in enumerate(clips):
            partner, weight = mixing(clip, len(self.clips), self.config, epoch)
            target_BC[row, self.targets[clip]] += weight
            target_BC[row, self.targets[partner]] += 1 - weight
        return target_BC

    def measure(self, clips: Clips) -> Measured:
        """Returns the accuracies, and one row per clip."""
        with torch.no_grad():
            text_CE = self.all_texts.embeddings()
        work, width = (lambda frames: self._logits(frames, text_CE)), len(self.all_texts)
        logits_MC = run_over(work, clips, self.model, width, self.evaluation_batch)
        return self.measured(clips, logits_MC)

    def measured(self, clips: Clips, logits_MC: Tensor) -> Measured:
        """Returns the metrics and rows that follow from the logits of all classes."""
        return measure_recognition(clips, logits_MC)

    @torch.no_grad()
    def probabilities(self, frames: Tensor) -> Tensor:
        """Frames -> probabilities of the classes, [B, C]."""
        return self._logits(frames, self.all_texts.embeddings()).softmax(-1)

    def _logits(self, frames: Tensor, text_CE: Tensor | None) -> Tensor:
        with autocast(self.config, frames.device):
            if text_CE is None:
                text_CE = self.texts.embeddings()
            logits_BC: Tensor = self.model(frames, text_CE)
        return logits_BC.float()


class BaseToNovel(Recognition):
    """Training on the base classes, whose sorted labels are `base`; evaluation of each half."""

    chosen_by = "base_top1"

    def __init__(self, base: Sequence[int], *others: Any) -> None:
        super().__init__(*others)
        self._base = base

    @cached_property
    def targets(self) -> Tensor:
        """The positions of the classes of the training clips among the base classes, [N]."""
        return torch.searchsorted(torch.tensor(self._base), self.clips.labels)

    def measured(self, clips: Clips, logits_MC: Tensor) -> Measured:
        """Returns base and novel accuracy and their harmonic mean, and one row per clip."""
        return measure_base_to_novel(clips, logits_MC, self._base)


class Retrieval(Objective):
    """Symmetric InfoNCE over the global batch.

    With `captions` one, an epoch uses one caption of a clip, which depends only on seed, epoch and
    clip, and clips with the same caption are positives of each other. With every, `clips` are pairs
    of a clip and a caption, and a text is a positive of a video if the annotation gives the video
    that caption, whichever pair of the batch it comes from.
    """

    additive = False
    chosen_by = "t2v_r1"

    def __init__(
        self, model: VideoModel, config: ExperimentConfig, clips: Clips, others: Sequence[Clips]
    ) -> None:
        super().__init__(model, config, clips)
        every = [s for part in (clips, *others) for captions in part.captions for s in captions]
        self._number = {sentence: number for number, sentence in enumerate(dict.fromkeys(every))}
        self._video = {video: n for n, video in enumerate(dict.fromkeys(clips.video_ids))}
        described = zip(clips.video_ids, clips.captions, strict=True)
        keys = [self._key(self._video[v], self._number[s]) for v, some in described for s in some]
        self._described = torch.tensor(keys, dtype=torch.long).unique().to(device_of(model))
        self._bank = None if model.trains_text else TextBank(model, every)
        self._width = TextBank(model, ()).width if self._bank is None else self._bank.width

    def caption(self, clip: int, epoch: int) -> str:
        """Returns the caption of a training clip in one epoch."""
        captions = self.clips.captions[clip]
        text = f"{self.config.seed}/{epoch}/{clip}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return captions[int.from_bytes(digest) % len(captions)]

    def outputs(self, frames: Tensor, clips: Sequence[int], epoch: int) -> Tensor:
        """Returns the embeddings of the clips and of their captions, concatenated, [B, 2E]."""
        video_BE = self._embed(frames)
        captions = [self.caption(clip, epoch) for clip in clips]
        if self._bank is None:
            with autocast(self.config, frames.device):
                text_BE = self.model.encode_text(captions)
        else:
            text_BE = self._bank.rows(captions).to(video_BE.device, non_blocking=True)
        return torch.cat([video_BE, text_BE.float()], 1)

    def no_outputs(self) -> Tensor:
        """Returns the embeddings of an empty share, [0, 2E]."""
        return torch.empty(0, 2 * self._width, device=device_of(self.model))

    def loss(self, outputs: Tensor, clips: Sequence[int], epoch: int, total: int) -> Tensor:
        """Returns this process's part of the contrastive loss; a collective operation."""
        del total  # the loss counts the rows of all processes
        video_BE, text_BE = outputs.chunk(2, 1)
        numbers = [self._number[self.caption(clip, epoch)] for clip in clips]
        texts_B = torch.tensor(numbers, dtype=torch.long).to(outputs.device, non_blocking=True)
        scale = self.model.logit_scale
        if self.config.training.captions == "one":
            return contrastive_loss(video_BE, text_BE, scale, texts_B)
        positives = self._positives(clips, texts_B)
        return contrastive_loss(video_BE, text_BE, scale, positives=positives)

    def _positives(self, clips: Sequence[int], texts_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the texts of the batch that describe each video, and the reverse, [B, G] each."""
        numbers = [self._video[self.clips.video_ids[clip]] for clip in clips]
        videos_B = torch.tensor(numbers, dtype=torch.long).to(texts_B.device, non_blocking=True)
        videos_G, texts_G = all_rows(videos_B), all_rows(texts_B)
        return (
            self._is_described(self._key(videos_B[:, None], texts_G)),
            self._is_described(self._key(videos_G, texts_B[:, None])),
        )

    def _is_described(self, keys: Tensor) -> Tensor:
        """Does the same as `torch.isin`, for which the host waits for a GPU."""
        place = torch.searchsorted(self._described, keys).clamp(max=len(self._described) - 1)
        return cast(Tensor, self._described[place] == keys)

    def _key(self, video: _Number, text: _Number) -> _Number:
        """Returns a number that identifies a video together with a text."""
        return video * len(self._number) + text

    def measure(self, clips: Clips) -> Measured:
        """Returns the retrieval metrics in both directions, and one row per query."""
        video_ME = run_over(self._embed, clips, self.model, self._width, self.evaluation_batch)
        bank = self._bank or TextBank(self.model, sentences_of(clips))
        return measure_retrieval(clips, video_ME, bank)

    def _embed(self, frames: Tensor) -> Tensor:
        with autocast(self.config, frames.device):
            video_BE = self.model.encode_video(frames)
        return video_BE.float()


def make_objective(
    model: VideoModel, config: ExperimentConfig, manifest: Manifest, splits: dict[str, Clips]
) -> Objective:
    """Returns the objective of the task; ValueError if two classes have the same token ids."""
    clips = splits["train"]
    if manifest.task == "retrieval":
        others = [part for name, part in splits.items() if name != "train"]
        return Retrieval(model, config, clips, others)
    sentences = class_sentences(config.templates, manifest.class_words)
    texts = ClassTexts(model, sentences)
    if METHODS[config.method].reads_text:
        texts.refuse_twins(manifest.class_names)
    if config.protocol.classes == "all":
        return Recognition(model, config, clips, texts)
    base = base_labels(manifest.class_names, config.protocol)
    trained = ClassTexts(model, [sentences[label] for label in base])
    return BaseToNovel(base, model, config, clips, trained, texts)
