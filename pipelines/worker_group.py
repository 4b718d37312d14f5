"""The workers of one training under Ray Train, which starts again what a lost node took along."""

import os
from pathlib import Path

from pipelines.command_line import RunError
from pipelines.resources import Resources
from pipelines.training_worker import GIVEN_UP, Watch, WorkerTask, train_worker
from stop_core.documents import read_text


def run_workers(task: WorkerTask, resources: Resources, watch: Watch) -> Path:
    """Trains, or goes on with it, and returns the last checkpoint.

    The run's name and folder are how Ray Train finds its checkpoints again.

    Raises:
        RunError: if the training has given up, which says why, or ends without a checkpoint.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    meeting = TorchConfig()
    if "RAY_ADDRESS" not in os.environ:
        from pipelines.loopback import LoopbackConfig

        meeting = LoopbackConfig()
    given_up = task.folder / GIVEN_UP
    given_up.unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=meeting,
        scaling_config=resources.scaling(),
        run_config=RunConfig(
            name=task.folder.name,
            storage_path=str(task.folder.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=resources.restarts),
            callbacks=list(watch.callbacks),
        ),
    )
    try:
        outcome = trainer.fit()
    except Exception:  # perhaps what another worker's end has brought about in this one
        if not given_up.is_file():
            raise
    if given_up.is_file():
        raise RunError(read_text(given_up))
    if outcome.checkpoint is None:
        raise RunError(f"the training {task.folder.name} ended without a result; run it again")
    return Path(outcome.checkpoint.path)
