"""Small random CLIPs and clips of noise, for tests that take milliseconds."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, settings
from open_clip.model import CLIP, set_model_preprocess_cfg
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.model.video_model import VideoModel

# The time of an example depends on the load of the machine, which is not a property of the code.
settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]

_VOCABULARY, _CONTEXT = 32, 16


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread: small tensors gain nothing from more, and tests run in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """Returns a function that makes a random open_clip CLIP, equal for equal arguments."""

    def build(
        seed: int = 0,
        *,
        width: int = 24,
        heads: int = 2,
        layers: int = 2,
        patch: int = 4,
        grid: int = 3,
        embed_dim: int = 12,
        quick_gelu: bool = False,
        **vision: object,
    ) -> FrozenClip:
        size = patch * grid
        vision_cfg = {
            "layers": layers,
            "width": width,
            "head_width": width // heads,
            "patch_size": patch,
            "image_size": size,
            **vision,
        }
        text_cfg = {
            "context_length": _CONTEXT,
            "vocab_size": _VOCABULARY,
            "width": 8,
            "heads": 2,
            "layers": 1,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = CLIP(embed_dim, vision_cfg, text_cfg, quick_gelu=quick_gelu)
            # A fresh tower's norms are identities and its biases zero: forgetting one would not
            # show.
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter += 0.1 * torch.randn_like(parameter)
        pixels = {"size": size, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
        set_model_preprocess_cfg(model, pixels)
        return FrozenClip("small-vit", model.requires_grad_(False).eval(), _tokenize)

    return build


@pytest.fixture(scope="session")
def make_frames() -> MakeFrames:
    """Returns a function that makes uint8 clips of noise, [B, T, H, W, 3]; all frames differ."""

    def build(seed: int, batch: int, frames: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, frames, size, size, 3)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    return build


@pytest.fixture(scope="session")
def stir() -> Stir:
    """Returns a function that adds noise to trainable tensors, so that prompts have an effect."""

    def move(module: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)
        own = module.trainable() if isinstance(module, VideoModel) else None
        with torch.no_grad():
            for parameter in own.values() if own is not None else module.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator)

    return move


def _tokenize(texts: Sequence[str]) -> Tensor:
    """Gives each letter an id behind a start, and the end the largest: open_clip pools there."""
    ids = torch.zeros(len(texts), _CONTEXT, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        letters = [1 + ord(letter) % (_VOCABULARY - 3) for letter in text[: _CONTEXT - 2]]
        ids_of_text = [_VOCABULARY - 2, *letters, _VOCABULARY - 1]
        row[: len(ids_of_text)] = torch.tensor(ids_of_text)
    return ids
