"""Uploads a trained model to the Hugging Face Hub."""

if __name__ == "__main__":  # python pipelines/push.py
    __import__("stop").run_file(__file__)

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from stop_core.storage.atomic import fetched_folder
from stop_core.trained_model.files import read_record

from .cli.console import print_result, reporting, say
from .cli.folders import default_output
from .cli.options import ModelPath, OutputFolder
from .inference.model_choice import ModelChoice


@dataclass(frozen=True)
class PushConfig:
    """Upload a trained model to the Hugging Face Hub, as one commit.

    The files are those of the model's folder, and its README.md is the model card: edit it before.
    Log in once with `hf auth login`.

    Examples:
      stop push outputs/runs/NAME USER/stop-motion
      stop predict clip.mp4 --checkpoint hf://USER/stop-motion
    """

    model: Annotated[ModelPath, tyro.conf.Positional]
    """Folder of a trained model, or of its training run: outputs/runs/NAME; or the beginning of
    NAME."""
    repository: Annotated[str, tyro.conf.Positional]
    """USER/NAME on the hub, which is made if it does not exist."""
    private: bool = False
    """Only you can see the repository."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the training runs."""


def main(config: PushConfig) -> str:
    """Uploads the model, and prints its address with the commit."""
    from stop_core.trained_model.hub import push_model

    folder = ModelChoice(config.model).found(config.output).folder
    with fetched_folder(folder) as here, reporting(lambda: f"uploading {folder}"):
        for name in ("tower", "pretrained"):
            if "/" in (value := str(getattr(read_record(here).config, name))):
                say(f"note: the {name} of this model is {value}, which others need to use it")
        address = push_model(here, config.repository, private=config.private)
    print_result(f"pushed {address}")
    print_result(f"next    stop predict VIDEOS --checkpoint {address}")
    return address
