"""The towers that come with their weights, by name. All others are those of open_clip.

Importing this module imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.settings.registry import Registry
from stop_core.tiny.shipped import BLOCKS, TINY_TOWERS, WIDTH

if TYPE_CHECKING:
    from torch import Tensor, nn

    Tokenize = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower, known without building it."""

    image_size: int  # pixels
    patches: int  # per frame
    blocks: int
    width: int  # channels of a token
    unfit: str = ""
    """Why methods cannot run its blocks, for a message; then the other numbers are 0."""


@dataclass(frozen=True)
class Tower:
    """A CLIP and its weights. Other packages register theirs (docs/your-own-method.md)."""

    name: str
    shape: TowerShape
    load: Callable[[bool], "tuple[nn.Module, Tokenize]"]
    """Returns a CLIP in open_clip's classes and its tokenizer, which maps N texts to ids [N, L].
    The argument is False for random weights, drawn from torch's global generator."""
    weights: Path
    """The file of the weights. Its bytes are part of the identity of a training."""


def _load_tiny(name: str, pretrained: bool) -> "tuple[nn.Module, Tokenize]":
    from stop_core.tiny.tower import TinyTokenizer, build_tiny_clip

    return build_tiny_clip(pretrained, TINY_TOWERS[name]), TinyTokenizer()


TOWERS: Registry[Tower] = Registry(Tower, "stop_video.towers")
for _tiny in TINY_TOWERS.values():
    TOWERS.register(
        Tower(
            _tiny.name,
            TowerShape(_tiny.image_size, _tiny.grid**2, BLOCKS, WIDTH),
            partial(_load_tiny, _tiny.name),
            _tiny.weights,
        )
    )
