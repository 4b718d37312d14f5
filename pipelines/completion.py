"""Prints the completion script of `stop` for a shell."""

if __name__ == "__main__":  # python pipelines/completion.py
    __import__("stop").run_file(__file__)

from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import reduce
from io import StringIO
from operator import or_
from typing import Annotated, Any, Literal

import tyro

from .cli.commands import commands
from .cli.console import print_result
from .cli.options import rules


@dataclass(frozen=True)
class CompletionConfig:
    """Print the script that completes commands, options and their choices after TAB.

    bash: add to ~/.bashrc   eval "$(stop completion bash)"
    zsh:  once               stop completion zsh > ~/.zfunc/_stop
          and in ~/.zshrc    fpath+=~/.zfunc; autoload -Uz compinit; compinit
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Name of the shell."""


def script(shell: str) -> str:
    """Returns the completion script for all commands with their present options."""
    every: list[Any] = [
        Annotated[command.load()[0], tyro.conf.subcommand(command.name, description=command.help)]
        for command in commands().values()
    ]
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        tyro.cli(
            reduce(or_, every),
            prog="stop",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.OmitArgPrefixes,),
            registry=rules(),
        )
    return printed.getvalue()


def main(config: CompletionConfig) -> None:
    """Prints the completion script."""
    print_result(script(config.shell))
