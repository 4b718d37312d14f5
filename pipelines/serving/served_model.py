"""The MLflow model as code, so that no pickle is loaded.

MLflow copies this file into the model that it logs, together with `stop_core` and the folder of
the trained model. A server does not have `pipelines`, so nothing of it is imported here.
"""

from typing import Any, cast

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from stop_core.runtime.devices import use_gpu
from stop_core.storage.documents import build
from stop_core.trained_model.model import TrainedModel
from stop_core.trained_model.service import ARTIFACT, RequestError, VideoService
from stop_core.trained_model.service_options import ServiceOptions


class ServedModel(PythonModel):
    """Answers tables of requests with a model that is loaded once."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the model and warms it up."""
        options = build(ServiceOptions, context.model_config or {}, "the options of the server")
        if options.device == "gpu":
            use_gpu()
        gpu = options.device != "cpu" and torch.cuda.is_available()
        model = TrainedModel.load(context.artifacts[ARTIFACT], "cuda" if gpu else "cpu")
        self.service = VideoService(model, options)
        self.service.warm_up()

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Returns an answer for every row of the input."""
        del context
        rows = cast(list[dict[str, Any]], model_input.astype(object).to_dict("records"))
        try:
            # Not a table: it would have NaN, which JSON does not have, in empty cells.
            return self.service.answer(rows, int((params or {}).get("top", 5)))
        except RequestError as problem:
            raise MlflowException.invalid_parameter_value(str(problem)) from None


mlflow.models.set_model(ServedModel())
