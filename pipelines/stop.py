"""The command `stop`: `stop NAME ...` runs `python pipelines/NAME.py ...`.

Only the given command is imported, so that `stop --help` is fast.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: PEP 366
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "pipelines"

from .cli.commands import GROUPS, commands
from .cli.console import EXIT_USAGE, ending_with_reader, print_result, say


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first of the arguments names (default: those of this process)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help", "--version"):
        with ending_with_reader():
            print_result(version() if name == "--version" else usage())
        sys.exit(0 if arguments else EXIT_USAGE)
    if name not in commands():
        say(f"error: {unknown(name)}")
        sys.exit(EXIT_USAGE)
    from .cli.options import run_command

    run_command(commands()[name], arguments[1:], prog=f"stop {name}")


def run_file(file: str) -> None:
    """Runs the command whose file is the program: `python pipelines/train.py`."""
    from .cli.options import run_command

    run_command(commands()[Path(file).stem])


def usage() -> str:
    """Returns the text of `stop --help`: every command with its line of help."""
    width = max(map(len, commands()))
    lines = [
        "usage: stop COMMAND [OPTION...]",
        "",
        "Prompt a frozen CLIP for video (STOP, CVPR 2025): from videos to a model in use.",
    ]
    for group, members in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {command.name:<{width}}  {command.help}" for command in members]
    lines += [
        "",
        "stop COMMAND --help lists the options of a command, stop --version the versions.",
        'Completion: eval "$(stop completion bash)"; zsh: see stop completion --help.',
    ]
    return "\n".join(lines)


def version() -> str:
    """Returns the installed version of this package, and of those that affect its numbers."""
    from .tracking.environment import installed_version

    own = installed_version("stop-video") or "(not installed: running from a checkout)"
    found = {"stop": own, "Python": ".".join(map(str, sys.version_info[:3]))}
    packages = ("torch", "open_clip_torch", "ray", "mlflow")
    found |= {name: version for name in packages if (version := installed_version(name))}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def unknown(name: str) -> str:
    """Returns the message for a command that does not exist."""
    from difflib import get_close_matches

    close = get_close_matches(name, commands(), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "stop --help lists the commands"
    return f"there is no command {name!r}; {hint}"


if __name__ == "__main__":
    main()
