"""Intra-frame prompting is the paper's section 3.2, frame by frame."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stop_core.model.spatial import SpatialPrompting, SpatialPrompts
from stop_core.settings.stop import StopConfig
from tests.stop_core.reference import array, check_spatial, error, min_max, packed

WIDTH, GRID = 10, (3, 2)
PATCHES = GRID[0] * GRID[1]


def tokens(seed: int, batch: int, frames: int, patches: int = PATCHES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, patches, WIDTH, generator=generator)


def attention(seed: int, batch: int, frames: int, patches: int = PATCHES) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(batch, frames, patches, generator=generator).softmax(-1)


def layer(config: StopConfig, grid: tuple[int, int] = GRID, seed: int = 0) -> SpatialPrompting:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SpatialPrompting(WIDTH, grid, config).eval()


def encode(own: SpatialPrompting, frames: int) -> SpatialPrompts:
    found: SpatialPrompts = own(packed(tokens(0, 2, frames)), lambda _: attention(0, 2, frames))
    return found


@torch.no_grad()
def prompted(config: StopConfig, h: Tensor, A_raw: Tensor) -> SpatialPrompts:
    return layer(config)(packed(h), lambda _: A_raw, every_prompt=True)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_equation_of_section_3_2_holds(
    data: st.DataObject, stir: Callable[..., None]
) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "grid")
    batch, frames = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)), "videos, frames")
    seed = data.draw(st.integers(0, 10_000), "seed")
    config = data.draw(
        st.builds(
            StopConfig,
            n_s=st.integers(0, rows * columns),
            alpha=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
            spatial_width=st.integers(1, 6),
            normalize=st.sampled_from(["per_frame", "running", "none"]),
            selection=st.sampled_from(["ste", "hard"]),
            dropout=st.sampled_from([0.0, 0.5]),
        ),
        "config",
    )
    own = layer(config, (rows, columns), seed)
    stir(own, seed)
    h = tokens(seed, batch, frames, rows * columns)
    with torch.no_grad():
        A_raw = attention(seed, batch, frames, rows * columns)
        found = own(packed(h), lambda _: A_raw, every_prompt=True)
    symbols = SimpleNamespace(h=h, h_s=found.h_s, **vars(found))
    check_spatial(symbols, own, config, (rows, columns), tolerance=1e-5)


@pytest.mark.parametrize("evenness", [1e-1, 1e-2, 1e-3])
def test_A_is_the_rescaled_attention_even_if_it_is_nearly_uniform(evenness: float) -> None:
    # The second smallest value is just above the smallest, as is usual among many patches.
    scores = torch.tensor([0.0, 5e-4, 0.25, 0.5, 0.75, 1.0])
    A_raw = (evenness * scores).softmax(-1).expand(1, 2, PATCHES)
    found = prompted(StopConfig(n_s=2), tokens(0, 1, 2), A_raw)
    assert error(found.A, min_max(array(A_raw))) < 1e-5


def test_a_prompt_sees_its_own_frame_and_one_to_each_side() -> None:
    config, frames = StopConfig(n_s=2), 7
    h, A_raw = tokens(0, 1, frames), attention(0, 1, frames)
    before = prompted(config, h, A_raw)
    for changed in range(frames):
        other = h.clone()
        other[:, changed] += tokens(5, 1, 1)[:, 0]
        after = prompted(config, other, A_raw)
        for name in ("p_s", "M_raw"):
            moved = (getattr(after, name) - getattr(before, name)).abs().flatten(2).amax(-1)[0]
            seen = [abs(frame - changed) <= 1 for frame in range(frames)]
            assert (moved > 0).tolist() == seen, name


def test_the_ends_of_a_clip_are_padded_with_its_first_and_last_frame() -> None:
    h, A_raw = tokens(0, 2, 4), attention(0, 2, 4)
    longer_h = torch.cat([h[:, :1], h, h[:, -1:]], dim=1)
    longer_A = torch.cat([A_raw[:, :1], A_raw, A_raw[:, -1:]], dim=1)
    config = StopConfig(n_s=2)
    short, long = prompted(config, h, A_raw), prompted(config, longer_h, longer_A)
    torch.testing.assert_close(long.p_s[:, 1:-1], short.p_s)
    torch.testing.assert_close(long.M_raw[:, 1:-1], short.M_raw)


def test_a_prompt_depends_on_the_order_of_the_frames() -> None:
    h, A_raw = tokens(0, 1, 5), attention(0, 1, 5)
    config = StopConfig(n_s=2)
    forward, backward = prompted(config, h, A_raw), prompted(config, h.flip(1), A_raw.flip(1))
    assert error(backward.p_s.flip(1), array(forward.p_s)) > 1e-2


def test_alpha_1_selects_by_attention_and_alpha_0_by_dynamics() -> None:
    h, A_raw = tokens(0, 2, 3), attention(0, 2, 3)
    by_attention = prompted(StopConfig(n_s=2, alpha=1.0), h, A_raw)
    by_dynamics = prompted(StopConfig(n_s=2, alpha=0.0), h, A_raw)
    for found, wanted in ((by_attention.r, A_raw), (by_dynamics.r, by_dynamics.M_raw)):
        top = torch.zeros_like(wanted).scatter(-1, wanted.topk(2).indices, 1.0)
        assert torch.equal(found, top)


@pytest.mark.parametrize("normalize", ["per_frame", "none"])
def test_frames_are_rescaled_independently(normalize: str) -> None:
    h, A_raw = tokens(0, 2, 6), attention(0, 2, 6)
    config = StopConfig(n_s=2, normalize=normalize)
    alone = prompted(config, h[:1, :3], A_raw[:1, :3])
    together = prompted(config, h, A_raw)
    # Frame 2 sees frame 3 where there is one; frames 0 and 1 see the same in both.
    for name in ("A", "M", "W_s", "r", "p_s", "h_s"):
        torch.testing.assert_close(getattr(together, name)[:1, :2], getattr(alone, name)[:, :2])


@pytest.mark.parametrize("selection", ["ste", "hard"])
def test_exactly_n_s_patches_of_a_frame_change(selection: str) -> None:
    h, A_raw = tokens(0, 2, 3), attention(0, 2, 3)
    for n_s in range(PATCHES + 1):
        found = prompted(StopConfig(n_s=n_s, selection=selection), h, A_raw)
        changed = (found.h_s != h).any(-1)
        assert torch.equal(changed, found.r == 1)
        assert (changed.sum(-1) == n_s).all()


@pytest.mark.parametrize(("selection", "learns"), [("ste", True), ("hard", False)])
def test_the_selector_learns_only_from_straight_through_gradients(
    selection: str, learns: bool
) -> None:
    for frames, n_s in itertools.product((1, 2, 4), range(1, PATCHES + 1)):
        own = layer(StopConfig(n_s=n_s, selection=selection))
        encode(own, frames).h_s.square().sum().backward()
        for name, parameter in own.dynamics.named_parameters():
            gradient = parameter.grad
            assert (gradient is not None and bool(gradient.any())) == learns, name
        assert all(parameter.grad.any() for parameter in own.prompter.parameters())


def test_dropout_zeroes_entries_of_prompts_only_in_training() -> None:
    own = layer(StopConfig(n_s=2, dropout=0.5))
    h, A_raw = tokens(0, 2, 3), attention(0, 2, 3)
    prompts = lambda: own(packed(h), lambda _: A_raw, every_prompt=True).p_s  # noqa: E731
    assert torch.equal(prompts(), prompts())
    assert prompts().ne(0).all()
    assert own(packed(h), lambda _: A_raw).p_s is None  # computed for the selected ones only
    own.train()
    torch.manual_seed(0)
    share = prompts().eq(0).float().mean()
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("choose", ["random", "fixed"])
def test_patches_by_chance_are_those_of_a_hash_that_a_stored_model_relies_on(choose: Any) -> None:
    own = layer(StopConfig(n_s=2, choose=choose, selection="ste"))
    prime, frames = 2**31 - 1, 3
    for draw in (5, 2**24 - 1):
        own.draw.fill_(draw)
        found = encode(own, frames).r
        for frame in range(frames):
            first = frame * PATCHES if choose == "random" else 0
            hashes = []
            for place in range(first + 1, first + PATCHES + 1):
                hashed = (48_271 * place + 7_919 * draw) % prime
                for _ in range(2):
                    hashed = (hashed * hashed + 1) % prime
                hashes.append(hashed)
            chosen = sorted(range(PATCHES), key=lambda j: -hashes[j])[:2]
            for video in range(2):
                assert found[video, frame].nonzero().flatten().tolist() == sorted(chosen)
        assert not found.requires_grad


def test_patches_by_chance_follow_the_seed_and_fixed_ones_are_those_of_all_blocks() -> None:
    for seed in (3, 2**24 + 5):
        torch.manual_seed(seed)
        one, other = (SpatialPrompting(WIDTH, GRID, StopConfig(choose="fixed")) for _ in range(2))
        assert one.draw == other.draw == seed % 2**24
        torch.manual_seed(seed)
        found = [SpatialPrompting(WIDTH, GRID, StopConfig(choose="random")) for _ in range(2)]
        assert found[0].draw != found[1].draw
        assert found[0].draw == layer(StopConfig(choose="random"), seed=seed).draw
