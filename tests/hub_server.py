"""A small Hugging Face Hub on loopback: the part of its HTTP interface that models need.

Routes, fields and headers are those of the hub that `huggingface_hub` talks to: repositories,
commits as lines of JSON, large files by Git LFS, metadata by HEAD, and a redirect to the storage.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest


class Hub(ThreadingHTTPServer):
    """Repositories in memory: for each, whether it is private, its commits, and its branches."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}/storage"  # another host, as on the hub
        self.private: dict[str, bool] = {}
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """Repository to commit to files."""
        self.heads: dict[str, str] = {}
        """Commit of the branch main of a repository."""
        self.large: dict[str, bytes] = {}
        """Files of Git LFS by their SHA-256."""
        self.sizes: dict[str, int] = {}
        """Sizes to state instead of the true ones, by the name of a file."""
        self.log: list[str] = []
        """Method and path of every request."""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Adds a commit with these files in addition to the existing ones; returns its hash."""
        self.private.setdefault(repository, False)
        commits = self.commits.setdefault(repository, {})
        whole = {**commits.get(self.heads.get(repository, ""), {}), **files}
        parts = [f"{n} {hashlib.sha1(c).hexdigest()}" for n, c in sorted(whole.items())]
        name = hashlib.sha1(" ".join([self.heads.get(repository, ""), *parts]).encode()).hexdigest()
        commits[name] = whole
        self.heads[repository] = name
        return name

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Returns the commit of a revision and its files; None if there is none."""
        name = self.heads.get(repository, "") if revision == "main" else revision
        found = self.commits.get(repository, {}).get(name)
        return None if found is None else (name, found)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yields a hub that answers requests meanwhile."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextmanager
def only_hub(cache: Path) -> Iterator[Hub]:
    """Makes a new hub the one of this process, with an account and this cache, as HF_ENDPOINT."""
    constants = huggingface_hub.constants
    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)  # the library has read the environment
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", "hf_of_the_test")
        yield hub


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Length": str(len(data)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, code: str, status: int = 404) -> None:
        self._answer(status, headers={"X-Error-Code": code, "X-Error-Message": code})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        """Answers with the metadata of a file."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answers about a repository, or with a file."""
        hub, path = self.server, urlsplit(self.path).path
        hub.log.append(f"{self.command} {path}")
        words = [unquote(word) for word in path.strip("/").split("/")]
        if words[0] == "storage":
            self._answer(200, hub.large[words[1]])
            return
        is_api = words[:2] == ["api", "models"]
        owner, name, *rest = words[2:] if is_api else words
        repository = f"{owner}/{name}"
        if repository not in hub.private:
            self._refuse("RepoNotFound")
            return
        revision = rest[1] if rest else "main"
        found = hub.files(repository, revision)
        if found is None and rest:
            self._refuse("RevisionNotFound")
        elif is_api:
            commit, files = found or ("", {})
            siblings = [{"rfilename": name} for name in files]
            answer = {"id": repository, "private": hub.private[repository]}
            self._answer(200, {**answer, "sha": commit, "siblings": siblings, "tags": []})
        else:
            assert found is not None
            self._send_file(*found, "/".join(rest[2:]))

    def _send_file(self, commit: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            self._refuse("EntryNotFound")
            return
        content = files[name]
        key = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(content)}"'}
        if key in self.server.large:
            headers |= {"X-Linked-Etag": f'"{key}"', "X-Linked-Size": str(len(content))}
            self._answer(302, headers={**headers, "Location": f"{self.server.storage}/{key}"})
        else:
            self._answer(200, content, headers)

    def do_PUT(self) -> None:
        """Receives a large file."""
        key, content = self.path.rpartition("/")[2], self._body()
        assert hashlib.sha256(content).hexdigest() == key
        self.server.large[key] = content
        self._answer(200)

    def do_POST(self) -> None:
        """Makes a repository or a commit, and answers questions about files."""
        hub, path = self.server, urlsplit(self.path).path
        hub.log.append(f"POST {path}")
        body = self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.storage}/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        else:
            owner, name, action, revision = map(unquote, path.split("/")[3:])
            repository = f"{owner}/{name}"
            if repository not in hub.private:
                self._refuse("RepoNotFound")
            elif action == "preupload":
                answer = [self._mode(repository, one) for one in json.loads(body)["files"]]
                self._answer(200, {"files": answer})
            elif action == "paths-info":
                found = hub.files(repository, revision)
                assert found is not None
                wanted = parse_qs(body.decode())["paths"]
                answer = [self._info(n, found[1][n]) for n in wanted if n in found[1]]
                self._answer(200, answer)
            elif action == "commit":
                self._commit(repository, body)

    def _create(self, wanted: dict[str, Any]) -> None:
        repository = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.address}/{repository}"}
        if repository in self.server.private:
            self._answer(409, {**url, "error": "You already created this model repo"})
            return
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.private[repository] = bool(private)
        self._answer(200, url)

    def _mode(self, repository: str, one: dict[str, Any]) -> dict[str, Any]:
        _, files = self.server.files(repository, "main") or ("", {})
        content = files.get(one["path"])
        large = one["path"].endswith(".safetensors")
        oid = None
        if content is not None:
            oid = hashlib.sha256(content).hexdigest() if large else _blob(content)
        mode = "lfs" if large else "regular"
        return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _info(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.server.sizes.get(name, len(content))
        return {"type": "file", "path": name, "size": size, "oid": _blob(content)}

    def _commit(self, repository: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert line["key"] == "header"
                assert value["summary"]
        name = self.server.commit(repository, files)
        url = f"{self.server.address}/{repository}/commit/{name}"
        self._answer(200, {"success": True, "commitOid": name, "commitUrl": url, "hookOutput": ""})


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
