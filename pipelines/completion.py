"""Prints the completion script of `stop` for a shell."""

import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from pipelines.command_line import parse, run
from pipelines.commands import Command, commands
from pipelines.progress import print_result


@dataclass(frozen=True)
class Completion:
    """Print the script that completes commands, options and their choices after TAB.

    bash: add to ~/.bashrc   eval "$(stop completion bash)"
    zsh:  once               stop completion zsh > ~/.zfunc/_stop
          and in ~/.zshrc    fpath+=~/.zfunc; autoload -Uz compinit; compinit
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Which shell."""

    def run(self) -> None:
        """Prints it."""
        print_result(script(self.shell))


def script(shell: str) -> str:
    """Returns the completion script for all commands, as their options are now."""
    kinds = [_subcommand(command) for command in commands().values()]
    every: Any = reduce(lambda left, right: left | right, kinds)
    return _printed(every, shell)


def _subcommand(command: Command) -> Any:
    options = getattr(import_module(command.module), command.options)
    return Annotated[options, tyro.conf.subcommand(command.name, description=command.help)]


def _printed(options: Any, shell: str) -> str:
    """What tyro prints as the completion of `options`."""
    said = StringIO()
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    with redirect_stdout(said), suppress(SystemExit):
        tyro.cli(options, prog="stop", args=["--tyro-print-completion", shell], config=config)
    return said.getvalue()


def main() -> None:
    """Runs the command line."""
    config = parse(Completion)
    run(config.run)


if __name__ == "__main__":
    main()
