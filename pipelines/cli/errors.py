"""Exit codes, and the failure that its message explains."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class RunError(RuntimeError):
    """A failure that its message explains to the user, with what to do next."""


def explain_missing(problem: ModuleNotFoundError) -> RunError:
    """Returns the message about a package that only an extra of the installation brings.

    Raises:
        ModuleNotFoundError: `problem`, if the module is part of this project.
    """
    package = (problem.name or "").partition(".")[0]
    if not package or package.startswith(("stop_", "pipelines")):
        raise problem
    return RunError(f"{package} is not installed: run pip install 'stop-video[pipelines]'")
