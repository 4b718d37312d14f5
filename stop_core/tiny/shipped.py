"""The tiny CLIPs that ship with this package, by name: what can be said of them without torch.

They differ in the size of their images alone, and so in how many patches a frame has.
"""

from dataclasses import dataclass
from pathlib import Path

PATCH_SIZE = 8  # pixels


@dataclass(frozen=True)
class TinyTower:
    """One of the tiny CLIPs."""

    name: str
    image_size: int
    """Edge of an image in pixels."""
    file: str
    """Name of its weights beside this file; their provenance has the same name, under .json."""

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.image_size // PATCH_SIZE

    @property
    def weights(self) -> Path:
        """The packaged weights."""
        return Path(__file__).with_name(self.file)


TINY = TinyTower("tiny", image_size=32, file="tiny_clip.safetensors")
TINY_64 = TinyTower("tiny-64", image_size=64, file="tiny_clip_64.safetensors")
TINY_TOWERS = {tower.name: tower for tower in (TINY, TINY_64)}
