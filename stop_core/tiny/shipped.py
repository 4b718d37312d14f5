"""Names and shapes of the tiny CLIPs that ship with this package; imports no torch.

They differ only in image size, and so in the number of patches per frame.
"""

from dataclasses import dataclass
from pathlib import Path

PATCH_SIZE = 8  # pixels
BLOCKS, WIDTH = 4, 96


@dataclass(frozen=True)
class TinyTower:
    """One of the tiny CLIPs."""

    name: str
    image_size: int
    """Edge of an image in pixels."""
    file: str
    """File name of the weights in this folder; their provenance has the same name with .json."""

    @property
    def grid(self) -> int:
        """Number of patches per side."""
        return self.image_size // PATCH_SIZE

    @property
    def weights(self) -> Path:
        """Path of the packaged weights."""
        return Path(__file__).with_name(self.file)


TINY = TinyTower("tiny", image_size=32, file="tiny_clip.safetensors")
TINY_64 = TinyTower("tiny-64", image_size=64, file="tiny_clip_64.safetensors")
TINY_TOWERS = {tower.name: tower for tower in (TINY, TINY_64)}
