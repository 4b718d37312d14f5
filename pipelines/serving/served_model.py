"""The MLflow model, as code: loaded from this very text, so that no pickle is.

MLflow copies this file into the model that it logs, beside `stop_core` and the folder of the
trained model. It may be loaded where the rest of `pipelines` is not, and imports nothing of it.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service import OPTIONS, Limits, RequestError, VideoService

SERVED_ARTIFACT = "trained_model"


class ServedModel(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Loads the model once, and answers tables of requests."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the model, and warms it up."""
        options = {**OPTIONS, **(context.model_config or {})}
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise ValueError(f"there is no option {unknown[0]}; there are {', '.join(OPTIONS)}")
        device = options["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = options["video_folder"]
        self.service = VideoService(
            TrainedModel.load(context.artifacts[SERVED_ARTIFACT], device),
            Path(folder) if folder else None,
            Limits(
                requests=int(options["max_requests"]),
                video_bytes=int(options["max_video_mib"]) << 20,
                decode_seconds=float(options["decode_seconds"]),
            ),
        )
        self.service.warm_up()

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """An answer for every row of the input."""
        del context
        rows = model_input.astype(object).to_dict("records")
        try:
            # No table: it would have NaN, which is no JSON, where an answer has nothing.
            return self.service.answer(rows, int((params or {}).get("top", 5)))
        except RequestError as problem:
            raise MlflowException.invalid_parameter_value(str(problem)) from None


mlflow.models.set_model(ServedModel())
