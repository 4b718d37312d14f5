"""Choosing patches and counting prompts, with gradients where the choice itself has none.

Shapes: B videos, T frames, P patches of a frame, K most prompts in one gap.
"""

import torch
from torch import Tensor

# Differences below this share of the largest value are float32 rounding, not signal.
_ROUNDING = 2e-6
_SOFT_WIDTH = 0.1  # width of the soft step, as a share of the range of a frame's weights


def min_max(values: Tensor, *, floor: bool = False) -> Tensor:
    """Rescales the last dimension to [0, 1]; where all values are alike, to 1/2.

    With `floor`, what float32 cannot tell from the least value is the least value: exactly 0.
    Without it `ceil` would give a prompt to the rounding error of a repeated frame.

    The bounds are constants to the gradient: every entry then keeps a gradient, also where there
    are so few that the rescaled values could not move (one or two gaps in a clip).
    """
    fixed = values.detach()
    low = fixed.amin(-1, keepdim=True)
    high = fixed.amax(-1, keepdim=True)
    noise = _ROUNDING * torch.maximum(low.abs(), high.abs())
    spread = high - low
    alike = spread <= noise
    unmoved = values - fixed  # zero, with the gradient of `values`
    above = values - low
    if floor:
        above = torch.where(fixed - low <= noise, unmoved, above)
    return torch.where(alike, 0.5 + unmoved, above / spread.masked_fill(alike, 1.0))


def choose_patches(weight_BTP: Tensor, n_s: int, *, straight_through: bool) -> Tensor:
    """Marks the `n_s` largest weights of every frame: r, [B, T, P], exactly `n_s` ones a frame.

    Ties go to the patch of the lower index (a stable sort), so that the same frame is always
    marked alike. With `straight_through`, the gradient is that of a soft step half-way between the
    last weight chosen and the first one not chosen.
    """
    # A sort, not a threshold: a threshold marks more than n_s patches where weights tie.
    order_BTP = weight_BTP.detach().argsort(dim=-1, descending=True, stable=True)
    r_BTP = torch.zeros_like(weight_BTP, requires_grad=False)
    r_BTP = r_BTP.scatter(-1, order_BTP[..., :n_s], 1.0)
    if not straight_through or n_s == 0:
        return r_BTP
    ranked_BTP = weight_BTP.detach().gather(-1, order_BTP)
    last, first_out = n_s - 1, min(n_s, weight_BTP.shape[-1] - 1)
    step_BT1 = (ranked_BTP[..., last : last + 1] + ranked_BTP[..., first_out : first_out + 1]) / 2
    soft_BTP = torch.sigmoid((weight_BTP - step_BT1) / _soft_width(ranked_BTP))
    # hard + (soft - soft), in this order: the other one is not exactly 0 or 1
    return r_BTP + (soft_BTP - soft_BTP.detach())


def count_prompts(change: Tensor, eta: float, max_prompts: int) -> Tensor:
    """N^t = ceil(eta * W^t), at most `max_prompts`: whole numbers as floats, shape of `change`."""
    return (eta * change.detach()).ceil().clamp(0, max_prompts)


def prompt_presence(change: Tensor, eta: float, max_prompts: int, *, soft: bool) -> Tensor:
    """How present each slot of a gap is: [..., K], 1 for the first N^t slots and 0 for the rest.

    With `soft`, slot k has the gradient of a soft step at eta * W^t = k + 1/2.
    """
    slots_K = torch.arange(max_prompts, device=change.device)
    counts = count_prompts(change, eta, max_prompts)
    presence = (slots_K < counts[..., None]).to(change.dtype)
    if not soft:
        return presence
    step = torch.sigmoid(eta * change[..., None] - slots_K - 0.5)
    return presence + (step - step.detach())


def _soft_width(ranked_BTP: Tensor) -> Tensor:
    """Width of the soft step, [B, T, 1], following the spread of a frame's weights."""
    # Not std(): it is undefined for a frame of one patch.
    width_BT1 = _SOFT_WIDTH * (ranked_BTP[..., :1] - ranked_BTP[..., -1:])
    return torch.where(width_BT1 > 0, width_BT1, torch.ones_like(width_BT1))
