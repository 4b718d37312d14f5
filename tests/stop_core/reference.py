"""STOP's equations (CVPR 2025, sections 3.2 and 3.3), one loop at a time, in float64.

Slow and plain on purpose: written from the equations, and from the model only its weights.
Shapes: B videos, T frames, P = G x G patches, D channels, K most prompts in one gap.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stop_core.model.sequences import VideoTokens
from stop_core.settings.stop import StopConfig

Array = NDArray[np.float64]

# Differences below this share of the largest value are float32 rounding.
ALIKE = 2e-6


def array(tensor: Tensor) -> Array:
    """A tensor of the model in float64."""
    return tensor.detach().cpu().double().numpy()


def weights(module: nn.Module) -> dict[str, Array]:
    """The weights of a module by name, in float64."""
    return {name: array(value) for name, value in module.state_dict().items()}


def error(found: Tensor | Array, wanted: Array) -> float:
    """Largest difference, relative to the largest magnitude (at least to float32's smallest)."""
    found = array(found) if isinstance(found, Tensor) else found
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if wanted.size == 0:
        return 0.0
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def worst_error(found: Tensor | Array, wanted: Array) -> float:
    """Largest difference of one entry, relative to that entry's own magnitude."""
    found = array(found) if isinstance(found, Tensor) else found
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if wanted.size == 0:
        return 0.0
    return float((np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-30)).max())


def min_max(values: Array) -> Array:
    """Last dimension to [0, 1], one row at a time; a row whose values are all alike gets 1/2."""
    out = np.empty_like(values)
    for row in np.ndindex(values.shape[:-1]):
        low, high = values[row].min(initial=np.inf), values[row].max(initial=-np.inf)
        if high - low <= ALIKE * max(abs(low), abs(high)):
            out[row] = 0.5
        else:
            out[row] = (values[row] - low) / (high - low)
    return out


def min_max_gaps(W_t_raw: Array) -> Array:
    """`min_max` of the gaps of a video; gaps within float32 rounding of the smallest become 0.

    Otherwise `ceil` would give a prompt to the rounding error of a repeated frame.
    """
    out = min_max(W_t_raw)
    for b, gap in np.ndindex(W_t_raw.shape):
        row = W_t_raw[b]
        if row.max() - row.min() > ALIKE * row.max() >= row[gap] - row.min():
            out[b, gap] = 0
    return out


def mix(A: Array, M: Array, alpha: float) -> Array:
    """W_i^s = alpha * A_i + (1 - alpha) * M_i."""
    W_s = np.empty_like(A)
    for b, t, j in np.ndindex(A.shape):
        W_s[b, t, j] = alpha * A[b, t, j] + (1 - alpha) * M[b, t, j]
    return W_s


def choose(W_s: Array, n_s: int) -> Array:
    """r_ij = 1 for the n_s largest W_ij^s of frame i, else 0; of equals, the first."""
    r = np.zeros_like(W_s)
    for b, t in np.ndindex(W_s.shape[:2]):
        by_weight = sorted(range(W_s.shape[2]), key=lambda j: (-W_s[b, t, j], j))
        for j in by_weight[:n_s]:
            r[b, t, j] = 1
    return r


def prompt_patches(h: Array, r: Array, p_s: Array) -> Array:
    """h_i^s = h_i + r_i * p_i^s."""
    h_s = np.empty_like(h)
    for b, t, j in np.ndindex(r.shape):
        h_s[b, t, j] = h[b, t, j] + r[b, t, j] * p_s[b, t, j]
    return h_s


def differences(h: Array) -> Array:
    """d_i = h_i - h_{i-1}, for i = 2..T."""
    d = np.empty_like(h[:, 1:])
    for b, gap in np.ndindex(d.shape[:2]):
        d[b, gap] = h[b, gap + 1] - h[b, gap]
    return d


def energy(tokens: Array) -> Array:
    """1/D * sum_k tokens_ijk^2: M from h~."""
    out = np.empty(tokens.shape[:3])
    for b, t, j in np.ndindex(out.shape):
        out[b, t, j] = sum(x * x for x in tokens[b, t, j]) / tokens.shape[3]
    return out


def gap_weights(d_tilde: Array, r: Array, beta: float) -> Array:
    """W_i^t = 1/(P*D) * sum_j (1 + beta * r_ij) * sum_k d~_ijk^2."""
    _, _, patches, width = d_tilde.shape
    W_t = np.zeros(d_tilde.shape[:2])
    for b, gap in np.ndindex(W_t.shape):
        for j in range(patches):
            squares = sum(x * x for x in d_tilde[b, gap, j])
            W_t[b, gap] += (1 + beta * r[b, gap + 1, j]) * squares
    return W_t / (patches * width)


def counts(W_t: Array, eta: float, max_prompts: int) -> Array:
    """N_i^t = ceil(eta * W_i^t), at most K."""
    N_t = np.empty_like(W_t)
    for b, gap in np.ndindex(W_t.shape):
        N_t[b, gap] = min(math.ceil(eta * W_t[b, gap]), max_prompts)
    return N_t


def first_slots(N_t: Array, max_prompts: int) -> NDArray[np.bool_]:
    """The mask of the first N_i^t of K slots."""
    mask = np.zeros((*N_t.shape, max_prompts), dtype=bool)
    for b, gap, slot in np.ndindex(mask.shape):
        mask[b, gap, slot] = slot < N_t[b, gap]
    return mask


def convolve(tokens: Array, grid: tuple[int, int], kernel: Array, bias: Array) -> Array:
    """A 3-D convolution of [B, T, P, W]: ends repeated in time, zeros around a frame."""
    batch, frames, _, width = tokens.shape
    rows, columns = grid
    volume = tokens.reshape(batch, frames, rows, columns, width)
    reach_t, reach_y, reach_x = (size // 2 for size in kernel.shape[2:])
    out = np.empty((batch, frames, rows, columns, len(bias)))
    for b, t, y, x in np.ndindex(out.shape[:4]):
        total = bias.copy()
        for dt, dy, dx in np.ndindex(kernel.shape[2:]):
            at_t = min(max(t + dt - reach_t, 0), frames - 1)
            at_y, at_x = y + dy - reach_y, x + dx - reach_x
            if 0 <= at_y < rows and 0 <= at_x < columns:
                total = total + kernel[:, :, dt, dy, dx] @ volume[b, at_t, at_y, at_x]
        out[b, t, y, x] = total
    return out.reshape(batch, frames, rows * columns, len(bias))


def softmax(scores: Array) -> Array:
    """Returns the softmax of one row of scores."""
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()


def light_convolution(tokens: Array, grid: tuple[int, int], own: Mapping[str, Array]) -> Array:
    """h~ = N^s(h) and d~ = N^t(d): down, 3 x 3 x 3 convolution, up."""
    hidden = tokens @ own["down.weight"].T + own["down.bias"]
    hidden = convolve(hidden, grid, own["conv.conv.weight"], own["conv.conv.bias"])
    return hidden @ own["up.weight"].T + own["up.bias"]


def spatial_prompts(h: Array, grid: tuple[int, int], own: Mapping[str, Array]) -> Array:
    """p_i^s = P^s(h_{i-1}, h_i, h_{i+1}): norm, Conv3d, ReLU, Conv3d, Linear, ReLU, Linear."""
    centred = h - h.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    hidden = scaled @ own["down.weight"].T + own["down.bias"]
    in_time = own["conv_in_time.conv.weight"], own["conv_in_time.conv.bias"]
    hidden = np.maximum(convolve(hidden, grid, *in_time), 0)
    hidden = convolve(hidden, grid, own["conv_in_space.weight"], own["conv_in_space.bias"])
    hidden = np.maximum(hidden @ own["mix.weight"].T + own["mix.bias"], 0)
    return hidden @ own["up.weight"].T + own["up.bias"]


def temporal_prompts(
    d: Array, W_t: Array, grid: tuple[int, int], own: Mapping[str, Array]
) -> Array:
    """P^t(d_i, W_i^t), [B, T-1, K, D]: attention, Conv3d, ReLU, Conv3d, Linear that sees W^t."""
    batch, gaps, patches, width = d.shape
    slots = len(own["slot_bias"])
    tokens = d @ own["down.weight"].T + own["down.bias"]
    hidden = tokens.shape[3]
    to_query, to_key, to_value = own["query_key_value.weight"].reshape(3, hidden, hidden)
    attended = np.empty_like(tokens)
    for b, gap, j in np.ndindex(batch, gaps, patches):
        query = to_query @ tokens[b, gap, j]
        keys = [to_key @ tokens[b, gap, other] for other in range(patches)]
        share = softmax(np.array([query @ key for key in keys]) / math.sqrt(hidden))
        mixed = sum(share[other] * (to_value @ tokens[b, gap, other]) for other in range(patches))
        attended[b, gap, j] = tokens[b, gap, j] + mixed
    in_time = own["conv_in_time.conv.weight"], own["conv_in_time.conv.bias"]
    features = np.maximum(convolve(attended, grid, *in_time), 0)
    features = convolve(features, grid, own["conv_in_space.weight"], own["conv_in_space.bias"])
    p_t = np.empty((batch, gaps, slots, width))
    for b, gap, slot in np.ndindex(batch, gaps, slots):
        share = softmax(features[b, gap] @ own["gather.weight"][slot])
        gathered = sum(share[j] * features[b, gap, j] for j in range(patches))
        seen = np.concatenate([gathered, [W_t[b, gap]]])
        p_t[b, gap, slot] = own["up.weight"] @ seen + own["slot_bias"][slot]
    return p_t


def cls_attention(cls: Array, h: Array, block: nn.Module, heads: int) -> Array:
    """A_i = Attn(h_cls, h_i): softmax inside one frame, averaged over heads.

    `cls` is [B, 1, D] (one a video) or [B, T, D] (one a frame).
    """
    own = weights(block)
    width = cls.shape[-1]
    to_query, to_key, _ = own["attn.in_proj_weight"].reshape(3, width, width)
    query_bias, key_bias, _ = own["attn.in_proj_bias"].reshape(3, width)

    def normed(token: Array) -> Array:
        centred = token - token.mean()
        scaled = centred / math.sqrt((centred**2).mean() + block.ln_1.eps)
        return scaled * own["ln_1.weight"] + own["ln_1.bias"]

    A = np.zeros(h.shape[:3])
    for b, t in np.ndindex(h.shape[:2]):
        query = to_query @ normed(cls[b, t if cls.shape[1] > 1 else 0]) + query_bias
        keys = [to_key @ normed(token) + key_bias for token in h[b, t]]
        for head in np.arange(width).reshape(heads, -1):
            scores = np.array([query[head] @ key[head] for key in keys])
            A[b, t] += softmax(scores / math.sqrt(len(head))) / heads
    return A


def packed(h: Tensor) -> VideoTokens:
    """Returns patches with CLS tokens of zeros, as a layer takes them."""
    return VideoTokens.pack(torch.zeros_like(h[:, :, 0]), h, "frame")


def check_spatial(
    found: object, layer: nn.Module, config: StopConfig, grid: tuple[int, int], *, tolerance: float
) -> None:
    """Asserts every equation of section 3.2 on anything with its symbols as attributes."""
    h, r, p_s = array(found.h), array(found.r), array(found.p_s)
    A, M = array(found.A), array(found.M)
    M_raw = energy(light_convolution(h, grid, weights(layer.dynamics)))
    assert worst_error(found.M_raw, M_raw) < tolerance
    rescale = np.array if config.normalize == "none" else min_max
    assert error(A, rescale(array(found.A_raw))) < tolerance
    assert error(M, rescale(array(found.M_raw))) < tolerance
    assert worst_error(found.W_s, mix(A, M, config.alpha)) < tolerance
    assert np.array_equal(r, choose(array(found.W_s), config.n_s))
    assert error(p_s, spatial_prompts(h, grid, weights(layer.prompter))) < tolerance
    assert error(found.h_s, prompt_patches(h, r, p_s)) < tolerance


def check_temporal(
    found: object, layer: nn.Module, config: StopConfig, grid: tuple[int, int], *, tolerance: float
) -> None:
    """Asserts every equation of section 3.3 on anything with its symbols as attributes."""
    source = array(found.h_s if config.difference == "prompted" else found.h)
    d, r, W_t = array(found.d), array(found.r), array(found.W_t)
    assert error(d, differences(source)) < tolerance
    d_tilde = light_convolution(d, grid, weights(layer.change))
    W_t_raw = gap_weights(d_tilde, r, config.beta)
    assert worst_error(found.W_t_raw, W_t_raw) < tolerance
    if config.normalize == "running":  # of a layer without a training step: the scale is 1
        still = light_convolution(np.zeros_like(d), grid, weights(layer.change))
        above = np.maximum(W_t_raw - gap_weights(still, r, config.beta), 0)
        assert np.abs(W_t - above).max(initial=0) < tolerance * max(1, W_t_raw.max(initial=0))
    else:
        rescale = min_max_gaps if config.normalize == "per_frame" else np.array
        assert error(W_t, rescale(array(found.W_t_raw))) < tolerance
    N_t = counts(W_t, config.eta, config.max_prompts)
    assert np.array_equal(array(found.N_t), N_t)
    assert np.array_equal(found.p_t_mask.numpy(), first_slots(N_t, config.max_prompts))
    p_t = temporal_prompts(d, W_t, grid, weights(layer.prompter))
    assert error(found.p_t, p_t) < tolerance
