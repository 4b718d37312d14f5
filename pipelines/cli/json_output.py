"""The option --json: the result of a command as one JSON document on stdout, for scripts."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any

from stop_core.storage.private import without_password

from .console import EXIT_FAILURE

JSON_OPTION = "--json"
_DOCUMENT: ContextVar[dict[str, Any] | None] = ContextVar("document", default=None)


def wants_json() -> bool:
    """Returns whether the running command prints its result as JSON."""
    return _DOCUMENT.get() is not None


def add_result(**fields: Any) -> None:
    """Adds fields to the document, if one is printed; a list is appended to an earlier one.

    Fields that were added before a failure are printed, too.
    """
    document = _DOCUMENT.get()
    if document is not None:
        for name, value in fields.items():
            earlier = document.get(name)
            if isinstance(value, list) and isinstance(earlier, list):
                value = [*earlier, *value]
            document[name] = value


@contextmanager
def printing_json() -> Iterator[None]:
    """Prints the document and the exit code after the body, also if it fails.

    Meanwhile all output on stdout goes to stderr, also that of other libraries and child processes.
    """
    document: dict[str, Any] = {}
    token = _DOCUMENT.set(document)
    is_own = sys.stdout is sys.__stdout__ and None not in (sys.stdout, sys.stderr)
    if is_own:  # not if a test or a notebook has replaced it
        stdout = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as end:
        document["exit_code"] = end.code or 0
        if end.code and len(document) == 1:
            document["error"] = "the command has failed, and stderr has the reason"
        raise
    except BaseException as problem:
        document["error"] = without_password(f"{type(problem).__name__}: {problem}")
        document["exit_code"] = EXIT_FAILURE
        raise
    finally:
        _DOCUMENT.reset(token)
        if is_own:
            os.dup2(stdout, 1)
            os.close(stdout)
        # Not `print_result`: every character beyond ASCII is escaped here.
        print(json.dumps(_plain(document), default=str, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """Returns a value in types of JSON, which has no NaN; `None` stands for it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
