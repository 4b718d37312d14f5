"""Packing is lossless and puts every token into the sequence of its video or frame."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stop_core.model.sequences import VideoTokens, pack_prompts
from stop_core.settings.stop import Attention

WIDTH, PATCHES, SLOTS = 3, 4, 2
attentions = st.sampled_from(["joint", "frame"])
sizes = st.integers(1, 4)


def numbered(*shape: int) -> torch.Tensor:
    """Tokens whose entries all differ."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


Given = tuple[torch.Tensor, torch.Tensor]


def tokens(batch: int, frames: int, attention: Attention) -> Given:
    """CLS tokens and patches."""
    cls_count = 1 if attention == "joint" else frames
    return -numbered(batch, cls_count, WIDTH), numbered(batch, frames, PATCHES, WIDTH)


@given(sizes, sizes, attentions)
def test_packed_tokens_have_their_cls_and_patches_as_views(
    batch: int, frames: int, attention: Attention
) -> None:
    cls, h = tokens(batch, frames, attention)
    packed = VideoTokens.pack(cls, h, attention)
    other = packed.with_h(h + 1)
    assert torch.equal(packed.cls, cls)
    assert torch.equal(packed.h, h)
    assert torch.equal(other.cls, cls)
    assert torch.equal(other.h, h + 1)
    packed.h.zero_()
    packed.cls.zero_()
    assert not packed.packed.any()


@given(sizes, sizes)
def test_joint_attention_has_one_sequence_per_video(batch: int, frames: int) -> None:
    cls, h = tokens(batch, frames, "joint")
    packed = VideoTokens.pack(cls, h, "joint").packed
    assert packed.shape == (batch, 1 + frames * PATCHES, WIDTH)
    for video in range(batch):
        assert torch.equal(packed[video], torch.stack([cls[video, 0], *h[video].flatten(0, 1)]))


@given(sizes, sizes)
def test_frame_attention_has_one_sequence_per_frame(batch: int, frames: int) -> None:
    cls, h = tokens(batch, frames, "frame")
    packed = VideoTokens.pack(cls, h, "frame").packed.reshape(batch, frames, 1 + PATCHES, WIDTH)
    for video in range(batch):
        for frame in range(frames):
            wanted = torch.stack([cls[video, frame], *h[video, frame]])
            assert torch.equal(packed[video, frame], wanted)


@given(sizes, st.integers(2, 4))
def test_in_joint_attention_a_video_has_the_prompts_of_its_gaps(batch: int, frames: int) -> None:
    prompts, present = numbered(batch, frames - 1, SLOTS, WIDTH), numbered(batch, frames - 1, SLOTS)
    packed, presence = pack_prompts(prompts, present, "joint")
    for video in range(batch):
        assert torch.equal(packed[video], prompts[video].flatten(0, 1))
        assert torch.equal(presence[video], present[video].flatten())


@given(sizes, st.integers(2, 4))
def test_in_frame_attention_a_frame_has_the_prompts_of_the_gap_before_it(
    batch: int, frames: int
) -> None:
    prompts, present = numbered(batch, frames - 1, SLOTS, WIDTH), numbered(batch, frames - 1, SLOTS)
    packed, presence = pack_prompts(prompts, present, "frame")
    packed = packed.unflatten(0, (batch, frames))
    presence = presence.unflatten(0, (batch, frames))
    assert not presence[:, 0].any(), "no gap lies before the first frame"
    assert torch.equal(packed[:, 1:], prompts)
    assert torch.equal(presence[:, 1:], present)


@pytest.mark.parametrize("attention", ["joint", "frame"])
def test_packed_prompts_have_as_many_sequences_as_packed_tokens(attention: Attention) -> None:
    given = numbered(2, 3, SLOTS, WIDTH), numbered(2, 3, SLOTS)
    prompts, presence = pack_prompts(*given, attention)
    sequences = VideoTokens.pack(*tokens(2, 4, attention), attention).packed
    assert len(prompts) == len(presence) == len(sequences)
    assert prompts.shape[:2] == presence.shape
