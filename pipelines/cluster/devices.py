"""The GPUs that trainings can use: those of this machine, or of the cluster of RAY_ADDRESS."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from stop_core.settings.experiment import ExperimentConfig

from ..cli.console import RunError, say
from ..cli.video_options import Device
from .resources import ResourceOptions, Resources, node_resources

# Ray's names of the NVIDIA GPUs older than Ampere, which compute bfloat16 slower than float32.
_WITHOUT_BF16 = re.compile("P4|P40|P100|T4|V100|K80|M60|RTX-20..|GTX-.*|TITAN.*|QUADRO.*")
_TYPE = "accelerator_type:"


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a machine or cluster."""

    count: int = 0
    names: tuple[str, ...] = ()
    bf16: bool = False
    """Whether all of them compute bfloat16 at full speed."""
    memory: int = 0
    """Bytes of the smallest one; 0 if it is not known, as on a cluster."""
    cpus_each: float = 1
    """CPUs of a machine for each of its GPUs, where they are fewest."""


@dataclass(frozen=True)
class Machine:
    """The settled resources of the trainings, and the meaning of `precision: auto` on them."""

    resources: Resources
    bf16: bool

    def settle(self, experiment: ExperimentConfig) -> ExperimentConfig:
        """Returns the experiment with a precision in the place of auto."""
        if experiment.precision != "auto":
            return experiment
        return replace(experiment, precision="bf16" if self.bf16 else "fp32")


def choose_devices(options: ResourceOptions, most_workers: int = 1) -> Machine:
    """Settles what the options leave open, and prints which GPUs are used.

    `most_workers` is the number of workers that a training may get, if the user gave none. Raises
    RunError if GPUs are asked for, and there are none that torch can use.
    """
    wanted = options.device == "gpu" or bool(options.gpus_per_worker)
    if options.device == "cpu" or options.gpus_per_worker == 0:
        return Machine(options.on(0), bf16=False)
    gpus = usable_gpus("gpu" if wanted else "auto", everywhere=True)
    resources = options.on(gpus.count, most_workers, gpus.cpus_each)
    resources = replace(resources, gpu_bytes=gpus.memory)
    if resources.gpus_per_worker:
        used = resources.workers if most_workers > 1 else gpus.count
        of = f"{used} of {gpus.count}" if used < gpus.count else f"{gpus.count}"
        precision = "bf16" if gpus.bf16 else "fp32, as not every GPU has bf16"
        say(f"device: {of} x {' or '.join(gpus.names) or 'GPU'}; precision auto is {precision}")
    return Machine(resources, gpus.bf16 and bool(resources.gpus_per_worker))


def usable_gpus(device: Device, *, everywhere: bool = False) -> Gpus:
    """Returns the GPUs that may be used; RunError if there must be one, and torch can use none.

    `everywhere` asks for those of the cluster of RAY_ADDRESS, if it is set.
    """
    if device == "cpu":
        return Gpus()
    of_cluster = everywhere and "RAY_ADDRESS" in os.environ
    gpus = _gpus_of_cluster() if of_cluster else _gpus_here()
    if device == "gpu" and not gpus.count:
        raise RunError(
            f"a GPU is asked for, and {'the cluster' if of_cluster else 'this machine'} has none "
            "that can be used; run `stop doctor` for the reason, or give --device cpu"
        )
    return gpus


def has_nvidia_gpu() -> bool:
    """Returns whether this machine has an NVIDIA GPU or its tools, usable by torch or not."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _gpus_here() -> Gpus:
    import torch

    if not torch.cuda.is_available():
        if has_nvidia_gpu():
            say(
                f"note: there is an NVIDIA GPU, but torch {torch.__version__} cannot use it; "
                "run `stop doctor` for the reason"
            )
        return Gpus()
    every = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    modern = torch.version.hip is not None or all(one.major >= 8 for one in every)
    names, memory = tuple(sorted({one.name for one in every})), min(o.total_memory for o in every)
    cpus = len(os.sched_getaffinity(0)) / len(every)
    return Gpus(len(every), names, modern, memory, cpus)


def _gpus_of_cluster() -> Gpus:
    from .session import start_ray

    start_ray()
    nodes = [node for node in node_resources() if node.get("GPU")]
    names = sorted({n.removeprefix(_TYPE) for node in nodes for n in node if n.startswith(_TYPE)})
    modern = bool(names) and not any(_WITHOUT_BF16.fullmatch(name) for name in names)
    cpus = min((node.get("CPU", 0.0) / node["GPU"] for node in nodes), default=1)
    return Gpus(int(sum(node["GPU"] for node in nodes)), tuple(names), modern, cpus_each=cpus)
