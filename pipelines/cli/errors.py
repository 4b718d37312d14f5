"""Exit codes, and failures that are reported by their message only."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class RunError(RuntimeError):
    """A failure whose message says what happened and what to do next."""


def explain_missing(problem: ModuleNotFoundError) -> RunError:
    """Returns the message for a package of an extra; raises `problem` for our own modules."""
    package = (problem.name or "").partition(".")[0]
    if not package or package.startswith(("stop_", "pipelines")):
        raise problem
    return RunError(f"{package} is not installed: run pip install 'stop-video[pipelines]'")
