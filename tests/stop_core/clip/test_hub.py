"""The hub's cache needs no network; without both, there is one sentence at once."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.stop_core.openai_format import openai_state

REPOSITORY = "timm/vit_base_patch32_clip_224.openai"
ROOT = Path(__file__).resolve().parents[2]


def _cached(home: Path, repository: str, file: str) -> Path:
    """Returns where the hub's cache keeps a file of a repository."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40) / file


def _load(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Loads ViT-B-32 of OpenAI in a process that counts what it asks the network."""
    program = """
        import socket, sys, time
        asked = []
        def refused(*arguments, **options):
            asked.append(arguments)
            raise socket.gaierror(-2, "Name or service not known")
        socket.getaddrinfo = refused
        from stop_core.clip.loading import load_clip
        began = time.monotonic()
        try:
            clip = load_clip("ViT-B-32", "openai")
            print("loaded", len(asked), type(clip.model.visual.transformer.resblocks[0].mlp.gelu))
        except OSError as problem:
            print("refused", len(asked), problem)
        print(time.monotonic() - began)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("offline", ["0", "1"])
def test_cached_weights_need_no_network(tmp_path: Path, offline: str) -> None:
    path = _cached(tmp_path, REPOSITORY, "open_clip_model.safetensors")
    save_file(openai_state("ViT-B-32"), path)
    done = _load(tmp_path, HF_HUB_OFFLINE=offline)
    assert done.stdout.startswith("loaded 0 <class 'open_clip.transformer.QuickGELU'>")
    assert done.stderr == ""


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_there_is_one_sentence_at_once(tmp_path: Path, offline: str) -> None:
    done = _load(tmp_path, HF_HUB_OFFLINE=offline)
    said, seconds = done.stdout.splitlines()
    asked = int(said.split()[1])
    assert asked <= 2 if offline == "0" else asked == 0
    for part in ("'openai' of the model ViT-B-32", REPOSITORY, "--pretrained FILE", "openai=FILE"):
        assert part in said
    assert float(seconds) < 4
    assert done.stderr == ""


def test_a_hub_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stop_core.clip import hub

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            hub.huggingface_hub,
            "hf_hub_url",
            lambda *_: f"http://127.0.0.1:{silent.getsockname()[1]}/",
        )
        monkeypatch.setattr(hub, "_TIMEOUT", 0.5)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"does not answer within 0\.5 s|timed out"):
            hub.hub_file("someone/something", "a.bin")
        assert time.monotonic() - began < 5
