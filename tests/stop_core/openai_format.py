"""Weights in the format of OpenAI's files: names, precision and TorchScript archive."""

import json
import warnings
from functools import cache
from pathlib import Path

import open_clip
import torch
from open_clip.model import convert_weights_to_fp16
from torch import Tensor, nn

SMALL = "test-openai-vit"
_SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 2, "width": 128, "patch_size": 32, "image_size": 224},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
EXTRAS = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}


def register_small(folder: Path, name: str = SMALL) -> None:
    """Adds a small tower of OpenAI's architecture to open_clip's list, or replaces a listed one."""
    (folder / f"{name}.json").write_text(json.dumps(_SMALL))
    open_clip.add_model_config(folder)


@cache
def openai_state(name: str = SMALL) -> dict[str, Tensor]:
    """Returns random weights of a listed tower, the matrices in half precision."""
    torch.manual_seed(3)
    model = open_clip.CLIP(**open_clip.get_model_config(name))
    for parameter in model.parameters():
        # Large enough for GELU and QuickGELU to differ by more than the rounding of float16.
        nn.init.normal_(parameter, std=0.2)
    convert_weights_to_fp16(model)
    return model.state_dict()


def write_archive(state: dict[str, Tensor], path: Path) -> None:
    """Writes weights as a TorchScript archive, with the extra buffers of OpenAI's files."""
    root = _nested(state)
    for name, value in EXTRAS.items():
        root.register_buffer(name, torch.tensor(value))
    # OpenAI's text blocks store their causal mask, an attribute that is not a weight.
    root.get_submodule("transformer.resblocks.0").attn_mask = torch.zeros(77, 77)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # TorchScript is deprecated; OpenAI's files stay as they are
        torch.jit.save(torch.jit.script(root), path)


class _Node(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _nested(state: dict[str, Tensor]) -> nn.Module:
    root = _Node()
    for name, value in state.items():
        *modules, last = name.split(".")
        node: nn.Module = root
        for part in modules:
            if part not in dict(node.named_children()):
                node.add_module(part, _Node())
            node = node.get_submodule(part)
        node.register_parameter(last, nn.Parameter(value, requires_grad=value.is_floating_point()))
    return root
