"""A CLIP that stays in memory for all trainings of one process, with the texts it has embedded."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stop_core.clip.loading import FrozenClip, load_clip

Loader = Callable[[str, str | None], FrozenClip]


@dataclass(frozen=True)
class SharedClip(FrozenClip):
    """Embeds a batch of texts once; what is frozen cannot embed them otherwise later."""

    embedded: dict[bytes, Tensor] = field(default_factory=dict)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """`FrozenClip.encode_tokens`, remembered."""
        tokens_NL = tokens_NL.cpu().contiguous()
        key = tokens_NL.numpy().tobytes()
        if key not in self.embedded:
            with torch.no_grad():
                self.embedded[key] = super().encode_tokens(tokens_NL)
        return self.embedded[key]


class ClipCache:
    """Loads a CLIP once, and gives the same one to every training that follows.

    A training must not depend on what its process did before. So the keeper leaves torch's random
    numbers as loading leaves them, and it loads anew for another seed: a tower without pretrained
    weights is random. It holds one CLIP at a time. Pickled, it is empty: it belongs to a process.
    """

    def __init__(self) -> None:
        self._key: tuple[str, str | None, int] | None = None
        self._kept: tuple[SharedClip, Tensor] | None = None

    def load(self, name: str, pretrained: str | None) -> FrozenClip:
        """`load_clip`, of whose result nobody may change a weight."""
        key = (name, pretrained, torch.initial_seed())
        if self._kept is None or self._key != key:
            self._kept = None  # two large towers need not fit
            clip = load_clip(name, pretrained)
            kept = SharedClip(clip.name, clip.model, clip.tokenize)
            self._key, self._kept = key, (kept, torch.get_rng_state())
        same, state = self._kept
        torch.set_rng_state(state)
        return same

    def __reduce__(self) -> tuple[type["ClipCache"], tuple[()]]:
        return ClipCache, ()
