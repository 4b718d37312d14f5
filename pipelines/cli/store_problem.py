"""Messages for an MLflow store that cannot be used: its address, its origin, the reason, a fix."""

import os
import re
import socket
import ssl

from stop_core.storage.private import first_line, without_password

from .console import RunError

TRACKING_URI = "MLFLOW_TRACKING_URI"

_DRIVER = re.compile(r"No module named '([^']+)'")
_STATUS = re.compile(r"too many (\d{3}) error responses")


def given_store() -> str:
    """Returns the MLflow store of MLFLOW_TRACKING_URI; empty if it is not set.

    Raises RunError if a URI that MLflow reads contains a password, which would end up in logs.
    """
    for name in (TRACKING_URI, "MLFLOW_REGISTRY_URI"):
        uri = os.environ.get(name, "")
        if (shown := without_password(uri)) != uri:
            raise RunError(
                f"{name}={shown} has a password in it, and would show it in logs: leave it out, "
                "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for PostgreSQL "
                "PGPASSWORD), or write it into ~/.mlflow/credentials (~/.pgpass)"
            )
    return os.environ.get(TRACKING_URI, "")


def explain_store_problem(uri: str, problem: BaseException) -> str:
    """Returns the problem and the advice of `diagnosis` as one text."""
    return ". ".join(diagnosis(uri, problem))


def diagnosis(uri: str, problem: BaseException) -> tuple[str, str]:
    """Returns which store cannot be used and why, and advice."""
    reason, advice = _reason(uri, problem)
    chosen, shown = os.environ.get(TRACKING_URI, ""), without_password(uri)
    if shown == without_password(chosen):
        origin = f"the address in {TRACKING_URI}"
        advice += f", or unset {TRACKING_URI} to record in a file below --output"
    elif not chosen and uri.startswith("sqlite:"):
        origin = f"the default, as {TRACKING_URI} is not set"
        advice += ", or give another --output"
    else:  # a run stays in the store where it started
        origin = "which has this run"
    return f"the MLflow store {shown} ({origin}) cannot be used: {reason}", advice


def _reason(uri: str, problem: BaseException) -> tuple[str, str]:
    chain = [problem]  # and its causes: libraries wrap errors several times
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for one in chain:
        match one:
            case socket.gaierror():
                return "its host name is not known", "Correct the host name, or the network"
            case ConnectionRefusedError():
                return "the connection was refused", "Start its server, or correct host and port"
            case ssl.SSLError():
                return (
                    f"no secure connection ({first_line(one)})",
                    "Write http:// for a server without TLS, or have its certificate trusted",
                )
            case TimeoutError():
                return (
                    "it did not answer in time",
                    "Check that the server runs and that no firewall blocks it",
                )
            case ModuleNotFoundError() if driver := _DRIVER.search(str(one)):
                return (
                    f"its driver {driver[1]} is not installed",
                    f"Install it (pip install {driver[1]}), or name another in the URI, as in "
                    "postgresql+psycopg2://",
                )
    text = " ".join(str(one) for one in chain)
    repeated = _STATUS.search(text)
    get_status = getattr(problem, "get_http_status_code", lambda: 0)
    status = (
        int(repeated[1]) if repeated else get_status() if "failed with error code" in text else 0
    )
    if status == 401 or (status == 403 and "Host header" not in text):
        return (
            f"it refuses the user or password (HTTP {status})",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if status == 403:
        return (
            f"it is not to be called by that host name (HTTP 403, {first_line(problem)})",
            "Start its server with that name in --allowed-hosts",
        )
    if status >= 500:
        return f"the server fails (HTTP {status})", "See the log of the server"
    if status or "valid JSON" in text:
        found = f"HTTP {status}" if status else "its answer is not JSON"
        return (
            f"it does not answer as an MLflow server does ({found})",
            "Correct the address, or see the log of the server",
        )
    if uri.startswith(("http:", "https:")):
        return first_line(problem), "See the log of the server"
    if uri.startswith("sqlite:"):
        return first_line(problem), "See that the file and its folder can be written"
    if "://" not in uri or uri.startswith("file:"):
        return (
            f"it is no server and no database ({first_line(problem)})",
            "Give a URI such as http://HOST:5000 or sqlite:////FOLDER/mlflow.db",
        )
    return first_line(problem), "See that the database is up, and that the URI is right"
