"""Files of the Hugging Face Hub: from its cache without asking the network, else downloaded."""

import threading
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

_PATIENCE = 3.0  # seconds


def hub_file(repository: str, *names: str) -> Path:
    """Returns the path of the first of `names` that a repository has.

    A file in the cache of huggingface_hub is taken as it is, so that no network is needed.

    Raises:
        OSError: if none is there, or the hub does not answer within a few seconds.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    # Its retries are for a download that has begun: without a network they take a minute and print
    # ten lines.
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    _require_answer(repository, names[0])
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
        except Exception as problem:  # of the hub, of HTTP or of the disk
            raise OSError(f"{_first_line(problem)}, for {name} of {repository}") from problem
    raise OSError(f"the repository {repository} has no {' and no '.join(names)}")


def _require_answer(repository: str, name: str) -> None:
    """Raises OSError at once where there is no network, whichever step of a request hangs."""
    problems: list[str] = [f"the Hugging Face Hub does not answer within {_PATIENCE:g} s"]

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(repository, name)
            huggingface_hub.get_hf_file_metadata(url, timeout=_PATIENCE)
        except EntryNotFoundError:
            pass
        except Exception as problem:
            problems[0] = _first_line(problem)
            return
        problems.clear()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    if problems:
        raise OSError(problems[0])


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")
