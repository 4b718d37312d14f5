"""Zero-shot accuracy of a CLIP on held-out stills, by attribute."""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tools.tiny_clip.stills import ATTRIBUTES, Stills, describe_object

# One prompt per attribute, which names only that attribute.
_PROMPTS = {
    "size": "a photo of a {} shape",
    "colour": "a photo of a {} shape",
    "shape": "a photo of a {}",
    "position": "a photo of a shape at the {}",
}
_BATCH = 432


class ImageTextModel(Protocol):
    """The part of open_clip's CLIP that is needed here."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings of images, [N, D]."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings of token ids, [N, D]."""


@torch.no_grad()
def zero_shot_accuracy(
    model: ImageTextModel, tokenizer: Callable[[list[str]], Tensor], stills: Stills
) -> dict[str, float]:
    """Returns the share of `stills` (single objects) whose attribute the model names.

    Keys: "size", "colour", "shape", "position", and "full" for the one right caption among all
    864 combinations (chance .001).
    """
    images_ND = _encode(model.encode_image, stills.images_NCHW)

    def choose(texts: Sequence[str]) -> Tensor:
        texts_KD = _encode(model.encode_text, tokenizer(list(texts)))
        return (images_ND @ texts_KD.T).argmax(-1)

    accuracy = {}
    for column, (attribute, words) in enumerate(ATTRIBUTES.items()):
        chosen_N = choose([_PROMPTS[attribute].format(word) for word in words])
        accuracy[attribute] = _share(chosen_N == stills.labels_NA[:, column])
    every_KA = list(itertools.product(*(range(len(words)) for words in ATTRIBUTES.values())))
    chosen_N = choose([f"a photo of a {describe_object(list(labels))}" for labels in every_KA])
    right_NA = torch.tensor(every_KA)[chosen_N] == stills.labels_NA
    accuracy["full"] = _share(right_NA.all(-1))
    return accuracy


def _encode(encode: Callable[..., Tensor], inputs: Tensor) -> Tensor:
    starts = range(0, len(inputs), _BATCH)
    return torch.cat([encode(inputs[at : at + _BATCH], normalize=True) for at in starts])


def _share(right_N: Tensor) -> float:
    return round(right_N.double().mean().item(), 4)
