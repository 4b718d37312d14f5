"""A trained model, ready to use: from the folder that a training left, or zero-shot.

Shapes: B videos, T frames of S x S pixels, N texts, C classes, E channels of the joint text-video
space.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip, load_clip, unsaid_activation
from stop_core.datasets import tidied
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.video_model import VideoModel
from stop_core.runtime.precision import autocast
from stop_core.runtime.seeding import seed_weights
from stop_core.settings.experiment import UNLISTED, ExperimentConfig, refuse_unlisted_tower
from stop_core.storage.checksums import SUMS
from stop_core.storage.documents import require_file
from stop_core.trained_model.card import render_card
from stop_core.trained_model.files import (
    PROMPTS,
    ClassLabel,
    ModelRecord,
    Provenance,
    TowerFacts,
    find_model,
    label_classes,
    read_record,
    write_model,
)
from stop_core.trained_model.frames import Preprocessing


@dataclass(frozen=True)
class TrainedModel:
    """A model with all that is needed to use it. It is in evaluation mode and gives no gradients.

    It computes what the evaluation at the end of its training did, in the same precision, to the
    rounding of the device.
    """

    model: VideoModel
    config: ExperimentConfig
    classes: tuple[ClassLabel, ...]
    """In the order of the logits; empty for a retrieval model."""
    preprocessing: Preprocessing
    provenance: Provenance

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        *,
        tower: str | None = None,
    ) -> "TrainedModel":
        """Loads a model from its folder, or from the folder of the training run that has it.

        The CLIP tower is loaded as at the training: by open_clip's tag, or from the same file.
        Only safetensors, JSON and YAML without tags are read: nothing of the folder runs.

        Args:
            folder: on this machine.
            device: where to put the model.
            tower: "hf-hub:..." or "local-dir:..." of a model that was trained on such a tower.
                A folder may come from anyone, so its own word for one is not taken.

        Raises:
            FileNotFoundError: if there is no model, or one of its files is missing.
            ValueError: if a file is damaged, or the tower is not the one that it was trained on.
            OSError: if the tower cannot be read or fetched.
        """
        found = find_model(Path(folder))
        record = read_record(found)
        if tower is not None and tower.startswith(UNLISTED):
            record = replace(record, config=replace(record.config, tower=tower))
        else:
            refuse_unlisted_tower(record.config.tower, f"the model {found}")
        tensors = _read_tensors(found / PROMPTS)

        def accept(name: str, clip: nn.Module) -> None:
            _refuse_other_tower(found, record, _facts(name, clip))

        # As a training does it: random weights are then the same ones.
        with torch.random.fork_rng(devices=[]):
            seed_weights(record.config.seed)
            clip = load_clip(record.config.tower, record.config.pretrained, accept)
        model = build_method(record.config, clip, len(record.classes))
        try:
            model.load_prompt_state_dict(tensors)
        except ValueError as problem:
            raise ValueError(f"{found / PROMPTS} does not fit its config: {problem}") from problem
        return cls._ready(model, record, device)

    @classmethod
    def zero_shot(
        cls,
        tower: str,
        pretrained: str | None,
        labels: Sequence[str],
        *,
        frames: int = 12,
        templates: tuple[str, ...] = ("default",),
        device: torch.device | str = "cpu",
    ) -> "TrainedModel":
        """CLIP as it is, with classes given by name: the average of the frames' embeddings.

        Args:
            tower: "tiny", "tiny-64", or any open_clip ViT.
            pretrained: see `stop_core.clip.pretrained`; None for the tiny ones.
            labels: names of classes; empty for embeddings alone.
            frames: T, of a clip.
            templates: sentences with {} for the class, or the name of a set for any dataset.
            device: where to put the model.

        Raises:
            ValueError: if the tower is unknown or unfit, or has no weights, or a label is empty,
                there twice, or the same text as another one to CLIP.
            OSError: if the weights cannot be read or fetched.
        """
        config = ExperimentConfig(
            method="zero-shot", tower=tower, pretrained=pretrained, templates=templates
        ).for_dataset("other")
        clip = load_clip(tower, pretrained)
        facts = tower_facts(clip)
        model = build_method(config, clip, len(labels))
        record = ModelRecord(
            config=config,
            classes=_checked_labels(model, labels, config.templates),
            preprocessing=Preprocessing(frames, model.image_size, facts.mean, facts.std),
            provenance=Provenance(facts.fingerprint),
        )
        return cls._ready(model, record, device)

    @classmethod
    def _ready(
        cls, model: VideoModel, record: ModelRecord, device: torch.device | str
    ) -> "TrainedModel":
        model = model.to(device).eval()
        return cls(model, record.config, record.classes, record.preprocessing, record.provenance)

    def with_labels(
        self, labels: Sequence[str], templates: tuple[str, ...] | None = None
    ) -> "TrainedModel":
        """The same model asked about other classes, by the names that CLIP's text side reads.

        What was measured at its training says nothing of them, and is left out.

        Args:
            labels: names of classes.
            templates: sentences with {} for the class; default: those that it was trained with.

        Raises:
            ValueError: if it is a linear probe, which knows its own classes alone, or a label is
                empty, there twice, or the same text as another one to CLIP.
        """
        if self.config.method == "linear-probe":
            raise ValueError(
                "a linear probe knows the classes of its training alone; leave the labels out, or "
                "use a model of another method"
            )
        classes = _checked_labels(self.model, labels, templates or self.config.templates)
        if classes == self.classes:
            return self
        return replace(self, classes=classes, provenance=replace(self.provenance, metrics={}))

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits; None for a retrieval model."""
        return tuple(label.name for label in self.classes) or None

    @property
    def device(self) -> torch.device:
        """Where the model lies; frames may lie anywhere."""
        return self.model.logit_scale.device

    @property
    def record(self) -> ModelRecord:
        """All of it but the tensors."""
        return ModelRecord(self.config, self.classes, self.preprocessing, self.provenance)

    @torch.no_grad()
    def embed_videos(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, S, S, 3] -> float32 embeddings [B, E], L2-normalised.

        T need not be that of the training, but only that was measured. A linear probe embeds as
        CLIP without training does.

        Raises:
            ValueError: if the frames are of another type or shape.
        """
        frames = frames.to(self.device)
        with autocast(self.config, self.device):
            embeddings: Tensor = self.model.encode_video(frames)
        return embeddings.float()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences, whole and without {} -> float32 embeddings [N, E], L2-normalised."""
        embeddings_NE: Tensor = self.model.encode_text(texts or ["a"]).float()
        return embeddings_NE[: len(texts)]

    @torch.no_grad()
    def logits(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, S, S, 3] -> float32 logits [B, C].

        Raises:
            ValueError: if the model has no classes, or the frames are of another type or shape.
        """
        text_CE = self.class_embeddings
        frames = frames.to(self.device)
        with autocast(self.config, self.device):
            logits_BC: Tensor = self.model(frames, text_CE)
        return logits_BC.float()

    def class_probabilities(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, S, S, 3] -> probabilities [B, C]: the softmax of the logits.

        Raises:
            ValueError: as `logits`.
        """
        return self.logits(frames).softmax(-1)

    @cached_property
    def class_embeddings(self) -> Tensor:
        """Embeddings of the classes' sentences, [C, E], made at first use.

        Raises:
            ValueError: if the model has no classes.
        """
        if not self.classes:
            raise ValueError(
                "this model was trained on captions and has no classes; use embed_videos and "
                "embed_texts, or give classes by with_labels"
            )
        with torch.no_grad():
            texts = ClassTexts(self.model, [label.sentences for label in self.classes])
            return texts.embeddings()

    def save(self, folder: Path) -> None:
        """Writes the model's folder, which appears whole, in the place of one that is there.

        Raises:
            OSError: if it cannot be written.
        """
        tensors = self.model.prompt_state_dict()
        write_model(folder, self.record, partial(save_file, tensors), render_card(self.record))


def keep_model(folder: Path, record: ModelRecord, prompts: Path) -> None:
    """Writes the folder of a model whose tensors lie in a file already."""
    write_model(folder, record, partial(shutil.copyfile, prompts), render_card(record))


def tower_facts(clip: FrozenClip) -> TowerFacts:
    """Returns a fingerprint over every weight of a CLIP, and what it normalises pixels with.

    An activation that the tower's name does not say is appended to the fingerprint.

    It reads what is in memory, so that it also tells weights that were changed under the same tag
    or file name. About a second for a gigabyte.
    """
    return _facts(clip.name, clip.model)


def _facts(tower: str, clip: nn.Module) -> TowerFacts:
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    mean, std = (tuple(getattr(clip.visual, f"image_{name}")) for name in ("mean", "std"))
    size = int(clip.visual.image_size[0])  # type: ignore[index, union-attr]
    unsaid = unsaid_activation(tower, clip)
    fingerprint = digest.hexdigest()[:16] + (f"-{unsaid}" if unsaid else "")
    return TowerFacts(fingerprint, mean, std, size)


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(require_file(path))
    except (SafetensorError, ValueError) as problem:
        raise ValueError(
            f"{path} is not a safetensors file ({problem}); nothing else is read, because other "
            "formats can run code. Copy the model's folder again, as a whole"
        ) from problem


def _refuse_other_tower(folder: Path, record: ModelRecord, found: TowerFacts) -> None:
    origin, how, config = record.provenance, record.preprocessing, record.config
    wanted = TowerFacts(origin.tower_fingerprint, how.mean, how.std, how.size)
    if found.fingerprint == f"{wanted.fingerprint}-quickgelu":
        raise ValueError(
            f"the model {folder} was trained with GELU, and its weights {config.pretrained} of "
            f"{config.tower} were trained with QuickGELU, which they have now: train it again"
        )
    if found != wanted:
        raise ValueError(
            f"the model {folder} was trained on other weights of {config.tower} "
            f"({config.pretrained or 'without a tag'}) than are found here: their fingerprint is "
            f"{wanted.fingerprint} there and {found.fingerprint} here, size, mean and std are "
            f"{wanted.size}, {wanted.mean}, {wanted.std} there and {found.size}, {found.mean}, "
            f"{found.std} here. Install the versions of its model card, or set pretrained in "
            f"{folder / 'config.yaml'} to the file of those weights, and its sum in {SUMS}"
        )


def _checked_labels(
    model: VideoModel, labels: Sequence[str], templates: Sequence[str]
) -> tuple[ClassLabel, ...]:
    names = [tidied(label) for label in labels]
    if not all(names):
        raise ValueError("a label is empty; give every class a name")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"the labels {', '.join(twice)} are there twice; name each class once")
    classes = label_classes(names, templates)
    if classes:
        ClassTexts(model, [label.sentences for label in classes]).refuse_twins(names)
    return classes
