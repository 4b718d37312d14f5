"""A trainer of Ray Train without the helper processes that only a shared Ray needs."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

_NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class SoleTrainer(TorchTrainer):
    """Runs the only training of a Ray that the command started, and that ends with it.

    Each helper is a process that imports Ray Data, and the workers wait for it: one shares datasets
    of Ray Data, which no training here has; one removes the reservation of a lost controller; and
    one asks an autoscaler for nodes.
    """

    def _create_default_callbacks(self) -> list[Any]:
        every = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in every if not isinstance(callback, _NEEDLESS)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = arguments["scaling_policy"]
        if type(policy) is FixedScalingPolicy:
            arguments["scaling_policy"] = _FixedWorkers(policy.scaling_config)
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]


class _FixedWorkers(FixedScalingPolicy):
    def after_controller_start(self, train_run_context: Any) -> None:
        """Requests nothing."""

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass
