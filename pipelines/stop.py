"""The one command: `stop NAME ...` runs `python pipelines/NAME.py ...`.

Only what is asked for is imported, so that `stop --help` answers at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.closed_output import ending_with_reader
from pipelines.commands import GROUPS, commands
from pipelines.progress import print_result, say

_USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that `argv` (default: of this process) begins with."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        with ending_with_reader():
            print_result(usage())
        sys.exit(0 if arguments else _USAGE_ERROR)
    if name == "--version":
        with ending_with_reader():
            print_result(version())
        sys.exit(0)
    if name not in commands():
        say(f"error: {unknown(name)}")
        sys.exit(_USAGE_ERROR)
    _run(name, arguments[1:])


def usage() -> str:
    """What `stop --help` prints: every command, with its line of help."""
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
        "stop COMMAND --help tells the options of a command, stop --version the versions.",
        'Completion: eval "$(stop completion bash)"; zsh: see stop completion --help.',
    ]
    return "\n".join(lines)


def version() -> str:
    """The installed version of this package and of what decides its numbers."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        own = installed("stop-video")
    except PackageNotFoundError:
        own = "(not installed: running from a checkout)"
    python = ".".join(map(str, sys.version_info[:3]))
    others = ("torch", "open_clip_torch", "ray", "mlflow")
    return f"stop {own}, Python {python}, " + ", ".join(f"{n} {installed(n)}" for n in others)


def unknown(name: str) -> str:
    """What to say of a command that there is not."""
    from difflib import get_close_matches

    close = get_close_matches(name, commands(), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "stop --help lists the commands"
    return f"there is no command {name!r}; {hint}"


def _run(name: str, arguments: Sequence[str]) -> None:
    """Runs the command's module as the program of this process, as running its file does."""
    from importlib.util import find_spec
    from types import ModuleType

    spec = find_spec(commands()[name].module)
    assert spec is not None
    assert spec.origin is not None
    # Not runpy: that would put the file's path in the place of the command's name.
    program = ModuleType("__main__")
    program.__dict__.update(__file__=spec.origin, __package__=spec.parent, __spec__=spec)
    sys.modules["__main__"] = program  # where pickle looks for the classes of a program
    sys.argv = [f"stop {name}", *arguments]
    exec(compile(Path(spec.origin).read_bytes(), spec.origin, "exec"), program.__dict__)


if __name__ == "__main__":
    main()
