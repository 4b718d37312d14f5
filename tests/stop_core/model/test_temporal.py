"""Inter-frame prompting is the paper's section 3.3, gap by gap."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stop_core.model.temporal import TemporalPrompting, TemporalPrompts
from stop_core.settings.stop import StopConfig
from tests.stop_core.reference import array, check_temporal, error, packed

WIDTH, GRID = 10, (3, 2)
PATCHES = GRID[0] * GRID[1]


def tokens(seed: int, batch: int, frames: int, patches: int = PATCHES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, patches, WIDTH, generator=generator)


def chosen(seed: int, batch: int, frames: int, n_s: int, patches: int = PATCHES) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    order = torch.rand(batch, frames, patches, generator=generator).argsort(-1)
    return (order < n_s).float()


def layer(config: StopConfig, grid: tuple[int, int] = GRID, seed: int = 0) -> TemporalPrompting:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TemporalPrompting(WIDTH, grid, config).eval()


@torch.no_grad()
def prompted(config: StopConfig, h: Tensor, r: Tensor) -> TemporalPrompts:
    return layer(config)(packed(h), r)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_equation_of_section_3_3_holds(
    data: st.DataObject, stir: Callable[..., None]
) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "grid")
    batch, frames = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5)), "videos, frames")
    seed = data.draw(st.integers(0, 10_000), "seed")
    config = data.draw(
        st.builds(
            StopConfig,
            beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
            eta=st.integers(0, 32).map(lambda quarters: quarters / 4),
            max_prompts=st.integers(1, 5),
            temporal_width=st.integers(1, 6),
            normalize=st.sampled_from(["per_frame", "running", "none"]),
            selection=st.sampled_from(["ste", "hard"]),
            dropout=st.sampled_from([0.0, 0.5]),
        ),
        "config",
    )
    n_s = data.draw(st.integers(0, rows * columns), "n_s")
    own = layer(config, (rows, columns), seed)
    stir(own, seed)
    h = tokens(seed, batch, frames, rows * columns)
    r = chosen(seed, batch, frames, n_s, rows * columns)
    with torch.no_grad():
        found = own(packed(h), r)
    derived = {name: getattr(found, name) for name in ("d", "W_t_raw", "N_t", "p_t_mask")}
    symbols = SimpleNamespace(h_s=h, h=h, r=r, **derived, **vars(found))
    check_temporal(symbols, own, config, (rows, columns), tolerance=1e-5)


def test_a_clip_of_one_frame_has_no_gaps() -> None:
    config = StopConfig(max_prompts=3)
    found = prompted(config, tokens(0, 2, 1), chosen(0, 2, 1, 2))
    assert found.d.shape == (2, 0, PATCHES, WIDTH)
    assert found.W_t_raw.shape == found.W_t.shape == found.N_t.shape == (2, 0)
    assert found.p_t.shape == (2, 0, 3, WIDTH)
    assert found.p_t_mask.shape == (2, 0, 3)
    assert found.p_t_mask.dtype == torch.bool


@pytest.mark.parametrize(
    "clip",
    [
        torch.zeros(1, 6, PATCHES, WIDTH),
        tokens(0, 1, 1).expand(-1, 6, -1, -1),
        tokens(0, 1, 2),
    ],
    ids=["black", "static", "one gap"],
)
def test_equal_gaps_get_half_of_eta_each(clip: Tensor) -> None:
    config = StopConfig(eta=4.0, max_prompts=4)
    r = chosen(0, 1, 1, 2).expand(1, clip.shape[1], -1)
    found = prompted(config, clip, r)
    assert found.W_t.eq(0.5).all()
    assert found.N_t.eq(2).all()


def test_gaps_between_repeated_frames_get_no_prompt_if_other_gaps_change() -> None:
    still, moved = tokens(0, 1, 1), tokens(9, 1, 1)
    clip = torch.cat([still.expand(-1, 6, -1, -1), moved.expand(-1, 6, -1, -1)], dim=1)
    own = layer(StopConfig(eta=4.0, max_prompts=4))
    with torch.no_grad():
        for parameter in own.change.parameters():
            if parameter.ndim == 1:
                parameter.zero_()  # without biases the weight of no change is 0
        found = own(packed(clip), None)
    # The filter of a gap sees one gap to each side, so one change affects three gaps.
    assert (found.N_t[0] > 0).nonzero().flatten().tolist() == [4, 5, 6]


def test_changes_within_rounding_of_the_least_one_get_no_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    energies = torch.tensor([[5.0, 5 + 4e-6, 5 + 2e-5, 9.0]]).double()
    monkeypatch.setattr("stop_core.model.temporal.weighted_mean", lambda *_: energies)
    found = layer(StopConfig(eta=4.0, max_prompts=4))(packed(tokens(0, 1, 5)), None)
    assert found.N_t[0].tolist() == [0, 0, 1, 4]


def test_gaps_are_rescaled_within_their_video() -> None:
    config = StopConfig(n_s=2)
    h, r = tokens(0, 3, 5), chosen(0, 3, 5, 2)
    h[1] *= 50
    together = prompted(config, h, r)
    for video in range(3):
        alone = prompted(config, h[video : video + 1], r[video : video + 1])
        torch.testing.assert_close(together.W_t[video : video + 1], alone.W_t)
        assert torch.equal(together.N_t[video : video + 1], alone.N_t)
        assert error(together.p_t[video : video + 1], array(alone.p_t)) < 1e-5


def test_beta_is_the_weight_of_the_selected_patches() -> None:
    h, r = tokens(0, 2, 4), chosen(0, 2, 4, 2)
    none = torch.zeros_like(r)
    blind, plain = StopConfig(beta=0.0), StopConfig(beta=1.0)
    assert torch.equal(prompted(blind, h, r).W_t_raw, prompted(blind, h, none).W_t_raw)
    assert torch.equal(prompted(plain, h, none).W_t_raw, prompted(blind, h, none).W_t_raw)
    assert (prompted(plain, h, r).W_t_raw > prompted(blind, h, r).W_t_raw).all()
    everywhere = prompted(plain, h, torch.ones_like(r)).W_t_raw
    torch.testing.assert_close(everywhere, 2 * prompted(blind, h, r).W_t_raw)


def test_the_selected_patches_of_the_later_frame_count_in_a_gap() -> None:
    h, r = tokens(0, 1, 4), torch.zeros(1, 4, PATCHES)
    before = prompted(StopConfig(), h, r).W_t_raw
    for frame in range(4):
        marked = r.clone()
        marked[:, frame, 1] = 1
        changed = prompted(StopConfig(), h, marked).W_t_raw != before
        assert changed[0].tolist() == [gap + 1 == frame for gap in range(3)]


def test_eta_0_gives_no_prompt_and_a_large_eta_all() -> None:
    h, r = tokens(0, 2, 4), chosen(0, 2, 4, 2)
    letter = {"normalize": "none", "max_prompts": 3}
    assert not prompted(StopConfig(eta=0.0, **letter), h, r).p_t_mask.any()
    assert prompted(StopConfig(eta=1e6, **letter), h, r).p_t_mask.all()


def test_the_prompts_of_a_gap_depend_on_its_weight() -> None:
    own = layer(StopConfig())
    hidden, change = own.prompter.down(tokens(0, 1, 3)), torch.tensor([[0.1, 0.5, 0.9]])
    other = torch.tensor([[0.1, 0.7, 0.9]])
    with torch.no_grad():
        moved = (own.prompter(hidden, change) != own.prompter(hidden, other)).flatten(2).any(-1)
    assert moved[0].tolist() == [False, True, False]


def test_the_slots_of_a_gap_have_different_prompts() -> None:
    found = prompted(StopConfig(max_prompts=3), tokens(0, 1, 3), chosen(0, 1, 3, 2))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found.p_t[:, :, one] - found.p_t[:, :, other]).abs().amax() > 1e-3
