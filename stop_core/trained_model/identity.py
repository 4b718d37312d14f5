"""Hashes that are equal if two models give the same embeddings, or the same predictions."""

import hashlib
from dataclasses import asdict

import torch

from stop_core.storage.atomic import hash_json
from stop_core.trained_model.model import TrainedModel

# The settings that inference depends on; the others only describe the training.
_SETTINGS = ("method", "tower", "static_prompts", "context_tokens", "precision")


def embedding_identity(trained: TrainedModel) -> str:
    """Returns 16 hex digits of the hash of weights, settings and preprocessing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trained.model.prompt_state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = {name: getattr(trained.config, name) for name in _SETTINGS}
    values = [
        settings | asdict(trained.config.stop),
        asdict(trained.preprocessing),
        trained.provenance.tower_fingerprint,
        digest.hexdigest(),
    ]
    return hash_json(values)[:16]


def answer_identity(trained: TrainedModel) -> str:
    """Returns 16 hex digits of the hash of `embedding_identity` and the classes."""
    classes = [asdict(label) for label in trained.classes]
    return hash_json([embedding_identity(trained), classes])[:16]
