"""STOP (CVPR 2025): integrated spatial-temporal dynamic prompting of a frozen CLIP.

The model, its baselines, the data and the metrics, independent of Ray and MLflow.
"""

from typing import TYPE_CHECKING, Any

from stop_core.settings.stop import StopConfig

if TYPE_CHECKING:
    from stop_core.model.stop import StopModel, build_model
    from stop_core.model.trace import PromptTrace

__all__ = ["PromptTrace", "StopConfig", "StopModel", "build_model"]


def __getattr__(name: str) -> Any:
    """Imports the model on first use: PyTorch takes seconds, and a frame cache does not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stop_core.model import stop

    return getattr(stop, name)
