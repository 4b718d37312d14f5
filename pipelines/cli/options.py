"""Options of the commands, from a dataclass and YAML; and how failures are reported."""

import atexit
import gc
import logging
import os
import re
import shlex
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from inspect import cleandoc
from io import StringIO
from itertools import pairwise
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from types import NoneType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from stop_core.settings.experiment import refuse_unlisted_tower
from stop_core.settings.methods import option_types
from stop_core.settings.registry import Registry
from stop_core.storage.documents import MOST_YAML, parse_yaml, read_text, shown
from stop_core.storage.paths import HUB, HubAddress, RemotePath, StoragePath, storage_path
from stop_core.storage.private import without_password

from . import console
from .commands import Command, commands
from .experiment_fields import closest
from .folders import named_file, output_folder
from .store_problem import TRACKING_URI, explain_store_problem

_T = TypeVar("_T")


def at_least_one(**options: int | None) -> None:
    """Raises ValueError for an option below 1; None is not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


def positive(**options: float) -> None:
    """Raises ValueError for an option that is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")


def model_path(text: str) -> StoragePath | HubAddress:
    """Returns the folder of a trained model, or its address on the Hugging Face Hub."""
    return HubAddress(text) if text.startswith(HUB) else output_folder(text)


def _option(read: Callable[[str], Any]) -> Any:
    """Returns tyro's rule for an option whose text `read` turns into a value."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, Path | RemotePath | HubAddress | None),
        str_from_instance=lambda value: [str(value)],
    )


_FOLDER, _MODEL = _option(output_folder), _option(model_path)
OutputFolder = Annotated[StoragePath, _FOLDER]
"""The type of an option for a folder of results, or its s3:// or gs:// URI."""
OptionalFolder = Annotated[StoragePath | None, _FOLDER]
ModelPath = Annotated[StoragePath | HubAddress, _MODEL]
"""The type of an option for a trained model: its folder or URI, or hf://USER/NAME[@REVISION]."""
OptionalModel = Annotated[StoragePath | HubAddress | None, _MODEL]
_DEFAULT = re.compile(r" \(default: ([^)]*)\)")
_COMMON_OPTIONS = """--config FILE.yaml sets defaults; an option on the command line overrides it.
--quiet shows only warnings and errors on stderr, --verbose also debug messages, and the logs of
Ray's workers and of other libraries."""
_JSON_OPTION = "\n--json prints the result as one JSON document on stdout, and the rest on stderr."


def parse(config_type: type[_T], argv: Sequence[str] | None = None, prog: str | None = None) -> _T:
    """Reads the command line into `config_type`, a frozen dataclass whose docstrings are the help.

    `--config FILE` gives defaults in YAML; every other option overrides it. A recipe for several
    commands has a mapping for each, under the command's name. Without `--config`, the static
    method `default_file` of the dataclass, if there is one, can name a file for given arguments.
    `--verbose` and `--quiet` set the level of the messages on stderr; `run` obeys `--json`. Bad
    usage, which includes a ValueError of the dataclass, is reported in one sentence and exits with
    2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        common = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        common.add_argument("--config", type=storage_path)
        common.add_argument("--json", action="store_true")
        verbosity = common.add_mutually_exclusive_group()
        for option, level in (("--verbose", logging.DEBUG), ("--quiet", logging.WARNING)):
            verbosity.add_argument(option, dest="level", action="store_const", const=level)
        given, arguments = common.parse_known_args(arguments)
        console.set_verbosity(given.level or logging.INFO)
        has_result = any(one.has_result for one in _commands_with(config_type))
        if given.json and not has_result:
            raise ValueError("this command has no result for scripts; leave --json out")
        default_file = getattr(config_type, "default_file", lambda arguments: None)
        config_file = given.config or default_file(arguments)
        default = config_file and _from_yaml(config_type, named_file(config_file, "recipes"))
        _refuse_values(config_type, arguments)
        with console.ending_with_reader():  # of the help
            if {"-h", "--help"} & set(arguments):  # tyro would not wrap it
                text = f"{cleandoc(config_type.__doc__ or '')}\n\n{_COMMON_OPTIONS}"
                console.print_result(_wrapped(text + (_JSON_OPTION if has_result else "")))
            with _complaints_of_tyro():
                config: _T = tyro.cli(
                    config_type,
                    prog=prog,
                    args=_without_values_of_flags(config_type, arguments),
                    default=cast(Any, default),
                    description="",
                    config=(tyro.conf.OmitArgPrefixes,),
                    registry=rules(config_file),
                )
            return config
    except (ValueError, ArgumentError) as problem:
        _complain(problem)
        sys.exit(console.EXIT_USAGE)


@contextmanager
def _complaints_of_tyro() -> Iterator[None]:
    """Takes the sentence out of the box that tyro draws around it, for --json."""
    box = StringIO()
    try:
        with redirect_stderr(box) if console.wants_json() else nullcontext():
            yield
    except SystemExit:
        # A title, a text and a hint, with lines between them, which are of - without UTF-8.
        inner = (line.strip("│╭╮╰╯─ ") for line in box.getvalue().splitlines())
        lines = [line for line in inner if line.strip("-")]
        if lines:
            _complain(" ".join(lines[1:]).partition(" For full help")[0])
        raise


def rules(file: StoragePath | None = None) -> ConstructorRegistry:
    """Returns tyro's rules for our options: their choices and their help.

    A field that is annotated with a `Registry` takes the names of its entries only. The help has
    the usual default of an option, and next to it that of `file`, if it has another.
    """
    registry = ConstructorRegistry()
    inside: set[object] = set()

    @registry.struct_rule
    def explain(info: StructTypeInfo) -> StructConstructorSpec | None:
        kind: Any = info.type
        if not is_dataclass(kind) or kind in inside:
            return None
        inside.add(kind)  # so that this rule leaves the following call to tyro's own
        usual = ConstructorRegistry.get_struct_spec(info)
        inside.remove(kind)
        assert isinstance(usual, StructConstructorSpec)
        hints = get_type_hints(kind, include_extras=True)
        own = {field.name: field for field in fields(kind)}
        explained = (
            one if is_dataclass(one.type) else _explained(one, hints[one.name], own[one.name], file)
            for one in usual.fields
        )
        return replace(usual, fields=tuple(explained))

    return registry


def _explained(
    option: StructFieldSpec, hint: Any, field: "Field[Any]", file: StoragePath | None
) -> StructFieldSpec:
    """Returns an option with its choices, its help in one paragraph, and its default once."""
    extras = getattr(hint, "__metadata__", ())
    bare = hint.__origin__ if extras else hint
    names = next((tuple(one) for one in extras if isinstance(one, Registry)), None)
    inner = [one for one in get_args(bare) if one not in (NoneType, Ellipsis)]
    text = option.helptext() if callable(option.helptext) else option.helptext
    text = " ".join((text or "").split())
    told = _DEFAULT.search(text)
    usual = option.default
    if file is not None and field.default is not MISSING:
        usual = field.default
    elif file is not None and field.default_factory is not MISSING:
        usual = field.default_factory()

    def defaults(given: str) -> str:
        same = option.default == usual
        label = (
            given if same else " ".join(map(str, usual if isinstance(usual, tuple) else [usual]))
        )
        label = told[1] if told else "" if usual is None or usual is False else label
        other = "" if same or file is None else f"in {file.name}: {given}"
        parts = "; ".join(filter(None, (label and f"default: {label}", other)))
        return parts and f"({parts})"

    metavar = None
    if len(inner) == 1 and inner[0] is not bool:  # of a union with None, or of a tuple
        choices = f"{{{','.join(map(str, get_args(inner[0])))}}}"
        metavar = choices if get_args(inner[0]) else inner[0].__name__.upper()
        if get_origin(bare) is tuple:
            metavar += " ..."
        elif tyro.conf.Positional in extras:
            metavar = f"[{metavar}]"
    told_once = tyro.conf.arg(metavar=metavar, help_behavior_hint=defaults)
    kind = cast(Any, Literal)[names] if names else option.type
    markers = (tyro.conf.DisallowNone,) if inner == [bool] else ()
    return replace(
        option,
        type=cast(Any, Annotated)[(kind, told_once, *markers)],
        helptext=_DEFAULT.sub("", text),
    )


def run_command(
    command: Command, argv: Sequence[str] | None = None, prog: str | None = None
) -> NoReturn:
    """Runs a command with its options; its module is imported by `run`, which reports failures."""

    def main() -> None:
        options, body = command.load()
        body(parse(options, argv, prog))

    run(main, argv)


def run(main: Callable[[], object], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs an entry point; reports a failure that a user can mend in one sentence, exit code 1.

    With `--json` in the arguments, stdout is one JSON document, also after a failure.
    """
    # Python collects garbage again when it exits, which takes a second after importing MLflow.
    atexit.register(gc.freeze)
    is_json = "--json" in (sys.argv[1:] if argv is None else argv)
    with console.ending_with_reader(), console.printing_json() if is_json else nullcontext():
        try:
            with console.ending_with_reader():
                main()
            sys.exit(0)
        except (ValueError, OSError, console.RunError) as problem:
            _complain(problem)
            sys.exit(getattr(problem, "exit_code", console.EXIT_FAILURE))
        except ModuleNotFoundError as problem:
            package = (problem.name or "").partition(".")[0]
            if not package or package.startswith(("stop_", "pipelines")):  # our own mistake
                raise
            _complain(f"{package} is not installed: run pip install 'stop-video[pipelines]'")
        except KeyboardInterrupt:
            _complain("interrupted; run the same command again to resume from what is complete")
            sys.exit(console.EXIT_INTERRUPTED)
        except Exception as problem:
            if type(problem).__module__.partition(".")[0] != "mlflow":
                raise
            uri = os.environ.get(TRACKING_URI) or "sqlite:///OUTPUT/mlflow.db"
            _complain(explain_store_problem(uri, problem))
        sys.exit(console.EXIT_FAILURE)


def from_mapping(config_type: type[_T], values: dict[str, Any], origin: str) -> _T:
    """Builds a (nested) dataclass from flat `values`; a ValueError about them names `origin`."""
    own_options = values.keys() & option_types().keys()
    remaining = {name: value for name, value in values.items() if name not in own_options}
    if own_options:
        remaining["options"] = [f"{name}={values[name]}" for name in sorted(own_options)]
    built = _build(config_type, remaining, origin)
    if remaining:
        raise ValueError(
            f"{origin} sets {', '.join(map(repr, remaining))}, which is not an option; "
            "--help lists the options"
        )
    return built


def flatten(config: Any) -> dict[str, Any]:
    """Returns all fields of a nested dataclass by name: the inverse of `from_mapping`."""
    flat: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        is_group = is_dataclass(value) and not isinstance(value, RemotePath)
        flat.update(flatten(value) if is_group else {field.name: value})
    return flat


def spell_out(config: Any, always: Sequence[str] = (), never: Sequence[str] = ()) -> list[str]:
    """Returns the words of a command line for `config`: the options that differ from the default.

    The fields in `always` are included even at their default, those in `never` are left out.
    """
    usual = flatten(type(config)())
    words = []
    for name, value in flatten(config).items():
        if name not in never and (name in always or value != usual[name]):
            no = "no-" if value is False else ""
            given = (
                value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
            )
            words += [f"--{no}{name.replace('_', '-')}", *(shlex.quote(str(one)) for one in given)]
    return words


def _build(config_type: type[_T], remaining: dict[str, Any], origin: str) -> _T:
    """Builds `config_type`, and removes its fields from `remaining`."""
    hints = get_type_hints(config_type)
    chosen: dict[str, Any] = {}
    for field in fields(cast(Any, config_type)):
        kind = hints[field.name]
        if is_dataclass(kind):
            chosen[field.name] = _build(cast(type[Any], kind), remaining, origin)
        elif field.name in remaining:
            chosen[field.name] = _as_type(kind, remaining.pop(field.name), field.name, origin)
    try:
        return config_type(**chosen)
    except ValueError as problem:
        raise ValueError(f"{origin}: {problem}") from problem


def _as_type(kind: Any, value: Any, name: str, origin: str) -> Any:
    """Reads a YAML value as the command line would read the same text."""
    if RemotePath in get_args(kind):
        read = model_path if HubAddress in get_args(kind) else output_folder
        return None if value is None else read(str(value))
    words = value if isinstance(value, list | tuple) else [value]
    try:
        return tyro.cli(
            kind,
            args=["None" if word is None else str(word) for word in words],
            console_outputs=False,
        )
    except SystemExit:
        raise ValueError(f"{origin}: {name} cannot be {shown(value)}") from None


def _from_yaml(config_type: type[_T], path: StoragePath) -> _T:
    try:
        values = parse_yaml(read_text(path, MOST_YAML))
    except (OSError, ValueError) as problem:
        raise ValueError(f"--config {path} cannot be read: {problem}") from problem
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} must hold `option: value` lines")
    # A mapping called like a command has the options of that command; the others skip it.
    sections = {name: values.pop(name) for name in commands() if isinstance(values.get(name), dict)}
    for command in _commands_with(config_type):
        values = sections.get(command.name, values)
    normal = {str(name).replace("-", "_"): value for name, value in values.items()}
    refuse_unlisted_tower(str(normal.get("tower")), f"--config {path}")
    return from_mapping(config_type, normal, f"--config {path}")


def _without_values_of_flags(config_type: type[Any], arguments: Sequence[str]) -> list[str]:
    """Rewrites `--check True` as `--check`, and `--check=False` as `--no-check`."""
    flags = {f"--{name.replace('_', '-')}" for name, kind in _typed_options(config_type)
             if bool in (kind, *get_args(kind))}  # fmt: skip
    words: list[str] = []
    for word in arguments:
        option, _, value = word.partition("=")
        words += [option, value] if option in flags and value else [word]
        if words[-1] in ("True", "False") and words[-2:-1] and words[-2] in flags:
            words[-2:] = [words[-2] if words[-1] == "True" else f"--no-{words[-2][2:]}"]
    return words


def _wrapped(text: str) -> str:
    """Returns a text with its paragraphs wrapped, except those with indented lines."""
    width = min(get_terminal_size().columns, 100)
    parts = (one if "\n " in one else fill(one, width) for one in text.split("\n\n"))
    return "\n\n".join(parts) + "\n"


def _refuse_values(config_type: type[Any], arguments: Sequence[str]) -> None:
    """Refuses a value that is none of the choices in a sentence, where tyro prints a box."""
    hints = dict(_typed_options(config_type))
    for word, following in pairwise([*arguments, "--"]):
        option, _, value = word.partition("=") if "=" in word else (word, "", following)
        hint = hints.get(option.removeprefix("--").replace("-", "_"))
        extras: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        registries = [one for one in extras if isinstance(one, Registry)]
        names = get_args(hint) if get_origin(hint) is Literal else next(iter(registries), ())
        if option.startswith("--") and "://" in value:
            if {_FOLDER, _MODEL}.intersection(extras):
                # Raises the ValueError that tyro would print in a box.
                (model_path if _MODEL in extras else output_folder)(value)
            elif Path in (hint, *get_args(hint)):
                raise ValueError(
                    f"{option} of this command takes a path of a disk, and "
                    f"{without_password(value)} is a URI"
                )
        if names and option.startswith("--") and not value.startswith("--") and value not in names:
            raise ValueError(f"{option} cannot be {shown(value)}; {closest(value, names)}")


def _typed_options(config_type: type[Any]) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(config_type, include_extras=True).items():
        if is_dataclass(kind):
            yield from _typed_options(cast(type[Any], kind))
        else:
            yield name, kind


def _commands_with(config_type: type[Any]) -> list[Command]:
    return [one for one in commands().values() if one.options == config_type.__name__]


def _complain(problem: BaseException | str) -> None:
    text = without_password(str(problem)) or type(problem).__name__
    console.add_result(error=text)
    console.say(f"error: {text}")
