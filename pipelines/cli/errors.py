"""Exit codes, and the failure that its message explains."""

EXIT_USAGE = 2


EXIT_FAILURE = 1


EXIT_INTERRUPTED = 130


class RunError(RuntimeError):
    """A failure that its message explains to the user, with what to do next."""
