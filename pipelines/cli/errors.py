"""Exit codes, and failures that are reported by their message only."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class RunError(RuntimeError):
    """A failure whose message says what happened and what to do next."""
