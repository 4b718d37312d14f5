"""Patch selection and prompt counts, with surrogate gradients (straight-through estimators).

Neither top-N_s nor ceil passes a gradient, so without a surrogate the filters N^s and N^t of the
paper would not learn.

Shapes: B videos, T frames, P patches per frame, K maximum prompts per gap.
"""

import torch
from torch import Tensor

# Differences below this share of the largest value are float32 rounding, not signal.
_ROUNDING = 2e-6
_SOFT_WIDTH = 0.1  # width of the soft step, as a share of the range of a frame's weights


def min_max(values: Tensor, *, floor: bool = False) -> Tensor:
    """Rescales the last dimension to [0, 1]; where all values are equal, to 1/2.

    With `floor`, values within float32 rounding of the minimum become exactly 0. Without it, `ceil`
    would give a prompt to the rounding error of a repeated frame.

    The gradient treats the bounds as constants, so that every entry keeps a gradient. Otherwise the
    rescaled values of a clip with one or two gaps could not move.
    """
    fixed = values.detach()
    low = fixed.amin(-1, keepdim=True)
    high = fixed.amax(-1, keepdim=True)
    noise = _ROUNDING * torch.maximum(low.abs(), high.abs())
    spread = high - low
    equal = spread <= noise
    zero = values - fixed  # carries the gradient of `values`
    above = values - low
    if floor:
        above = torch.where(fixed - low <= noise, zero, above)
    return torch.where(equal, 0.5 + zero, above / spread.masked_fill(equal, 1.0))


def choose_patches(weight_BTP: Tensor, n_s: int, *, straight_through: bool) -> Tensor:
    """Returns r, [B, T, P]: 1 for the `n_s` largest weights of every frame, else 0.

    Exactly `n_s` patches of a frame are selected. Of tied patches, those of the lowest index are:
    the sort is stable, so that equal frames get equal selections. With `straight_through`, the
    gradient is that of a sigmoid step halfway between the smallest selected and the largest
    unselected weight.
    """
    # A sort instead of a threshold: a threshold selects more than n_s patches when weights tie.
    order_BTP = weight_BTP.detach().argsort(dim=-1, descending=True, stable=True)
    r_BTP = torch.zeros_like(weight_BTP, requires_grad=False)
    r_BTP = r_BTP.scatter(-1, order_BTP[..., :n_s], 1.0)
    if not straight_through or n_s == 0:
        return r_BTP
    ranked_BTP = weight_BTP.detach().gather(-1, order_BTP)
    last, first_out = n_s - 1, min(n_s, weight_BTP.shape[-1] - 1)
    step_BT1 = (ranked_BTP[..., last : last + 1] + ranked_BTP[..., first_out : first_out + 1]) / 2
    # The range instead of std(), which is undefined for a frame of one patch.
    width_BT1 = _SOFT_WIDTH * (ranked_BTP[..., :1] - ranked_BTP[..., -1:])
    width_BT1 = torch.where(width_BT1 > 0, width_BT1, torch.ones_like(width_BT1))
    soft_BTP = torch.sigmoid((weight_BTP - step_BT1) / width_BT1)
    # hard + (soft - soft), in this order: (hard + soft) - soft is not exactly 0 or 1.
    return r_BTP + (soft_BTP - soft_BTP.detach())


def count_prompts(change: Tensor, eta: float, max_prompts: int) -> Tensor:
    """Returns N^t = min(ceil(eta * W^t), K) as floats, in the shape of `change`."""
    return (eta * change.detach()).ceil().clamp(0, max_prompts)


def prompt_presence(change: Tensor, eta: float, max_prompts: int, *, soft: bool) -> Tensor:
    """Returns the presence of each slot of a gap, [..., K]: 1 for the first N^t slots, else 0.

    With `soft`, slot k has the gradient of a sigmoid step at eta * W^t = k + 1/2.
    """
    slots_K = torch.arange(max_prompts, device=change.device)
    counts = count_prompts(change, eta, max_prompts)
    presence = (slots_K < counts[..., None]).to(change.dtype)
    if not soft:
        return presence
    step = torch.sigmoid(eta * change[..., None] - slots_K - 0.5)
    return presence + (step - step.detach())
