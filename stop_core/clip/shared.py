"""A CLIP that all trainings of a process share, together with its text embeddings."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stop_core.clip.loading import FrozenClip, load_clip


@dataclass(frozen=True)
class SharedClip(FrozenClip):
    """A frozen CLIP that caches the embeddings of each batch of texts."""

    embedded: dict[bytes, Tensor] = field(default_factory=dict)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the embeddings [N, E] of token ids [N, L], computed once."""
        tokens_NL = tokens_NL.cpu().contiguous()
        key = tokens_NL.numpy().tobytes()
        if key not in self.embedded:
            with torch.no_grad():
                self.embedded[key] = super().encode_tokens(tokens_NL)
        return self.embedded[key]


class ClipCache:
    """Loads a CLIP once and shares it with the following trainings; holds one CLIP at a time.

    A training must not depend on earlier trainings of its process. So a cache hit sets PyTorch's
    random state to that after loading, and another seed loads again, since a tower without
    pretrained weights is random. A pickled copy is empty.
    """

    def __init__(self) -> None:
        self._key: tuple[str, str | None, int] | None = None
        self._cached: tuple[SharedClip, Tensor] | None = None

    def load(self, name: str, pretrained: str | None) -> FrozenClip:
        """Returns the result of `load_clip`; its weights must not be changed."""
        key = (name, pretrained, torch.initial_seed())
        if self._cached is None or self._key != key:
            self._cached = None  # memory for two large towers is not required
            clip = load_clip(name, pretrained)
            shared = SharedClip(clip.name, clip.model, clip.tokenize)
            self._key, self._cached = key, (shared, torch.get_rng_state())
        shared, state = self._cached
        torch.set_rng_state(state)
        return shared

    def __reduce__(self) -> tuple[type["ClipCache"], tuple[()]]:
        return ClipCache, ()
