"""Ray's token: who can read it can run code as its owner, so nobody else may."""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ..cli.console import say
from ..cli.errors import RunError


def token_file() -> Path:
    """Where Ray looks for its token, if it is not in RAY_AUTH_TOKEN."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _usual_folder() / "auth_token")


def _usual_folder() -> Path:
    return Path.home() / ".ray"


def keep_token_private(create: bool) -> None:
    """Closes the file of Ray's token to other users; makes one if there is none and `create`.

    Ray itself writes it readable for all, so this comes before Ray starts.

    Raises:
        RunError: if another user owns the file or its folder, or it is a link.
    """
    if (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    ):
        return
    path = token_file()
    try:
        if create and not os.path.lexists(path):
            _make(path)
        if path.parent == _usual_folder():  # another one may be for others too
            # Whoever can write to the folder can put a token there that they know.
            _close(path.parent, os.O_DIRECTORY, 0o022)
        mode = _close(path, os.O_NOFOLLOW, 0o077)
    except FileNotFoundError:
        return  # Ray says that there is none, if its cluster wants one
    except OSError as problem:
        raise RunError(
            f"the token of Ray, {path}, cannot be kept from other users "
            f"({problem.strerror or problem}): remove it, and run the same command again to get a "
            "new one; a cluster needs the same one on all its machines"
        ) from problem
    if mode:
        say(
            f"warning: others could read {path} (mode {mode:04o}), and with it run code as you; it "
            "is closed to them now. If you do not trust them all, remove it: the next command "
            "makes a new one (copy that to the machines of your cluster)"
        )


def _make(path: Path) -> None:
    """Appears whole, for this user only, and replaces none that another process has just made."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".auth_token.") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


def _close(path: Path, flag: int, forbidden: int) -> int:
    """Takes rights that others have; returns the mode if there were any, else 0."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flag)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid():
            raise PermissionError(f"{path} belongs to another user")
        mode = stat.S_IMODE(status.st_mode)
        if not mode & forbidden:
            return 0
        os.fchmod(descriptor, mode & ~forbidden)
        return mode
    finally:
        os.close(descriptor)
