"""A trained model, ready to use: from the folder that a training left, or zero-shot.

Shapes: B videos, T frames of S x S pixels, N texts, C classes, E channels of the joint text-video
space.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from open_clip.utils import to_2tuple
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip, load_clip, unsaid_activation
from stop_core.datasets import tidied
from stop_core.model.class_texts import ClassTexts
from stop_core.model.methods import build_method
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast, seed_weights
from stop_core.settings.experiment import UNLISTED, ExperimentConfig, refuse_unlisted_tower
from stop_core.settings.methods import METHODS
from stop_core.storage.atomic import SUMS, hash_json
from stop_core.storage.documents import require_file
from stop_core.storage.paths import HUB, StoragePath
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
from stop_core.trained_model.hub import hub_model

# The settings that inference depends on; the others only describe the training.
_SETTINGS = ("method", "tower", "static_prompts", "context_tokens", "precision")


@dataclass(frozen=True)
class TrainedModel(ModelRecord):
    """A model with everything that inference needs, in evaluation mode and without gradients.

    Its outputs equal those of the evaluation at the end of its training, in the same precision, up
    to the rounding of the device.
    """

    model: VideoModel

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", *, tower: str | None = None
    ) -> "TrainedModel":
        """Loads a model from its folder, the folder of its training run, or `hf://USER/NAME`.

        The CLIP tower is loaded as for the training: by open_clip's tag, or from the same file.
        Only safetensors, JSON and YAML without tags are read, so no code of the folder runs. A
        folder can come from anyone, so a tower "hf-hub:..." or "local-dir:..." that it names is not
        trusted: `tower` has to name it again. A model of the Hugging Face Hub is downloaded if it
        is not in its cache; `hf://USER/NAME@REVISION` names a branch, a tag or a commit.

        Raises:
            FileNotFoundError: if there is no model, or one of its files is missing.
            ValueError: if a file is damaged, or the tower differs from that of the training.
            OSError: if the tower or the model cannot be read or downloaded.
        """
        if str(folder).startswith(HUB):
            _, folder = hub_model(str(folder))
        found = find_model(Path(folder))
        record = read_record(found)
        if tower is not None and tower.startswith(UNLISTED):
            record = replace(record, config=replace(record.config, tower=tower))
        else:
            refuse_unlisted_tower(record.config.tower, f"the model {found}")
        try:
            tensors = load_file(require_file(found / PROMPTS))
        except (SafetensorError, ValueError) as problem:
            raise ValueError(
                f"cannot read {found / PROMPTS} as safetensors ({problem}); other formats are "
                "refused because they can run code. Copy the whole folder of the model again"
            ) from problem

        # The same seed as in the training, so that random weights are the same.
        with torch.random.fork_rng(devices=[]):
            seed_weights(record.config.seed)
            accept = partial(_refuse_other_tower, found, record)
            accept = partial(_refuse_other_tower, found, record)
            clip = load_clip(record.config.tower, record.config.pretrained, accept)
        model = build_method(record.config, clip, len(record.classes))
        try:
            model.load_prompt_state_dict(tensors)
        except ValueError as problem:
            raise ValueError(f"{found / PROMPTS} does not fit its config: {problem}") from problem
        return cls(**vars(record), model=model.to(device).eval())

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
        """Returns CLIP without training, with classes by name: the mean of the frame embeddings.

        `tower` and `pretrained` are those of `load_clip`. Without `labels`, there are embeddings
        only. `templates` are sentences with {} for the class, or the name of a set for any dataset.
        Raises ValueError or OSError as `load_clip` and `with_labels`.
        """
        config = ExperimentConfig(
            method="zero-shot", tower=tower, pretrained=pretrained, templates=templates
        ).for_dataset("other")
        clip = load_clip(tower, pretrained)
        facts = tower_facts(clip)
        model = build_method(config, clip, len(labels))
        return cls(
            config=config,
            classes=_checked_labels(model, labels, config.templates),
            preprocessing=Preprocessing(frames, model.image_size, facts.mean, facts.std),
            provenance=Provenance(facts.fingerprint),
            model=model.to(device).eval(),
        )

    def with_labels(
        self, labels: Sequence[str], templates: tuple[str, ...] | None = None
    ) -> "TrainedModel":
        """Returns the same model with other classes, without the metrics of the training.

        `templates` are sentences with {} for the class, by default those of the training. Raises
        ValueError for a linear probe, or if a label is empty, repeated, or another's text to CLIP.
        """
        if not METHODS[self.config.method].reads_text:
            raise ValueError(
                f"a model of the method {self.config.method} knows only the classes of its "
                "training; leave the labels out, or use a model of another method"
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
        """Device of the model; frames can be on any."""
        return self.model.logit_scale.device

    @torch.no_grad()
    def embed_videos(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, S, S, 3] -> float32 embeddings [B, E], L2-normalised.

        T can differ from the training, but only that was measured. A linear probe embeds as CLIP
        without training does. Raises ValueError if the frames have another type or shape.
        """
        frames = frames.to(self.device)
        with autocast(self.config, self.device):
            embeddings: Tensor = self.model.encode_video(frames)
        return embeddings.float()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Complete sentences, without {} -> float32 embeddings [N, E], L2-normalised."""
        embeddings_NE: Tensor = self.model.encode_text(texts or ["a"]).float()
        return embeddings_NE[: len(texts)]

    @torch.no_grad()
    def logits(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, S, S, 3] -> float32 logits [B, C]; ValueError without classes."""
        text_CE = self.class_embeddings
        frames = frames.to(self.device)
        with autocast(self.config, self.device):
            logits_BC: Tensor = self.model(frames, text_CE)
        return logits_BC.float()

    def class_probabilities(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, S, S, 3] -> probabilities [B, C], the softmax of `logits`."""
        return self.logits(frames).softmax(-1)

    @cached_property
    def class_embeddings(self) -> Tensor:
        """Embeddings of the sentences, [C, E]; raises ValueError if there are no classes."""
        if not self.classes:
            raise ValueError(
                "this model was trained on captions and has no classes; use embed_videos and "
                "embed_texts, or add classes with with_labels"
            )
        with torch.no_grad():
            texts = ClassTexts(self.model, [label.sentences for label in self.classes])
            return texts.embeddings()

    def save(self, folder: Path) -> None:
        """Writes the model's folder atomically, and replaces an existing one."""
        write_model(
            folder, self, partial(save_file, self.model.prompt_state_dict()), render_card(self)
        )


def keep_model(folder: StoragePath, record: ModelRecord, prompts: Path) -> None:
    """Writes the folder of a model whose tensors are in the file `prompts`."""
    write_model(folder, record, partial(shutil.copyfile, prompts), render_card(record))


def tower_facts(clip: FrozenClip) -> TowerFacts:
    """Returns a fingerprint of all weights of a CLIP, its input size, and its pixel mean and std.

    The fingerprint ends with the activation, if the tower's name does not imply it. It detects
    weights that changed under the same tag or file name; it takes about a second per gigabyte.
    """
    return _facts(clip.name, clip.model)


def _facts(tower: str, clip: nn.Module) -> TowerFacts:
    visual: Any = clip.visual
    unsaid = unsaid_activation(tower, clip)
    weights = {f"{k} {v.dtype} {tuple(v.shape)}": v for k, v in clip.state_dict().items()}
    fingerprint = _hash(weights)[:16] + (f"-{unsaid}" if unsaid else "")
    mean, std = tuple(visual.image_mean), tuple(visual.image_std)
    return TowerFacts(fingerprint, mean, std, int(to_2tuple(visual.image_size)[0]))


def embedding_identity(trained: TrainedModel) -> str:
    """Returns 16 hex digits that are equal if two models give the same embeddings."""
    prompts = trained.model.prompt_state_dict()
    values = [
        {name: getattr(trained.config, name) for name in _SETTINGS} | asdict(trained.config.stop),
        trained.preprocessing.to_dict(),
        trained.provenance.tower_fingerprint,
        _hash({f"{name} {tuple(tensor.shape)}": tensor for name, tensor in prompts.items()}),
    ]
    return hash_json(values)[:16]


def answer_identity(trained: TrainedModel) -> str:
    """Returns 16 hex digits that are equal if two models give the same predictions."""
    classes = [asdict(label) for label in trained.classes]
    return hash_json([embedding_identity(trained), classes])[:16]


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse_other_tower(folder: Path, record: ModelRecord, name: str, clip: nn.Module) -> None:
    found = _facts(name, clip)
    origin, how, config = record.provenance, record.preprocessing, record.config
    wanted = TowerFacts(origin.tower_fingerprint, how.mean, how.std, how.size)
    if found.fingerprint == f"{wanted.fingerprint}-quickgelu":
        raise ValueError(
            f"the model {folder} was trained with GELU, and its tower {config.tower} now has the "
            f"QuickGELU that the weights {config.pretrained} were trained with: train it again"
        )
    if found != wanted:
        raise ValueError(
            f"the model {folder} was trained on other weights of {config.tower} "
            f"({config.pretrained or 'without a tag'}) than those installed here: it needs "
            f"{wanted}, and found {found}. Install the versions of its model card, or set "
            f"pretrained in {folder / 'config.yaml'} to the file of those weights, and update its "
            f"checksum in {SUMS}"
        )


def _checked_labels(
    model: VideoModel, labels: Sequence[str], templates: Sequence[str]
) -> tuple[ClassLabel, ...]:
    names = [tidied(label) for label in labels]
    if not all(names):
        raise ValueError("a label is empty; give every class a name")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"the labels {', '.join(twice)} are repeated; name each class once")
    classes = label_classes(names, templates)
    if classes:
        ClassTexts(model, [label.sentences for label in classes]).refuse_twins(names)
    return classes
