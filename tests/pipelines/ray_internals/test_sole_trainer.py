"""The only training of a Ray starts no process that only a shared Ray needs."""

from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import scaling_policy
from ray.train.v2._internal.execution.scaling_policy.factory import create_scaling_policy

from pipelines.ray_internals.sole_trainer import _NEEDLESS, SoleTrainer


def _trainers(workers: Any) -> tuple[Any, Any]:
    scaling = ScalingConfig(num_workers=workers)
    plain, sole = (kind(print, scaling_config=scaling) for kind in (TorchTrainer, SoleTrainer))
    return plain, sole


def test_all_other_parts_of_ray_train_are_left() -> None:
    plain, sole = _trainers(2)
    usual = [type(callback) for callback in plain._create_default_callbacks()]
    assert set(_NEEDLESS) <= set(usual)
    left = [type(callback) for callback in sole._create_default_callbacks()]
    assert left == [kind for kind in usual if kind not in _NEEDLESS]


@pytest.mark.parametrize(("workers", "asks"), [(2, False), ((1, 2), True)])
def test_only_an_elastic_training_asks_an_autoscaler(
    workers: Any, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sole = _trainers(workers)
    monkeypatch.setattr(
        TorchTrainer, "_initialize_and_run_controller", lambda self, scaling_policy: scaling_policy
    )
    policy = sole._initialize_and_run_controller(
        scaling_policy=create_scaling_policy(sole.scaling_config)
    )
    asked: list[str] = []
    # Ray 2.60 starts its client here; Ray 2.55 sends by itself.
    monkeypatch.setattr(
        scaling_policy, "TrainAutoscalingCoordinatorClient", lambda run: None, raising=False
    )
    for name in ("_send_resource_request", "_cancel_resource_request"):
        monkeypatch.setattr(
            scaling_policy.ScalingPolicy, name, lambda self, name=name: asked.append(name)
        )
    policy.after_controller_start(type("Context", (), {"run_id": "1"}))
    assert bool(asked) == asks
    if not asks:
        decision = policy.make_decision_for_non_running_worker_group()
        assert decision.num_workers == workers
        policy.before_controller_abort()
        assert not asked
