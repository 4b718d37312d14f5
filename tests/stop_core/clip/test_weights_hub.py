"""The hub's cache needs no network; without both, loading fails at once with one sentence."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from stop_core.clip import weights
from tests.stop_core.openai_format import openai_state, register_small

ROOT = Path(__file__).resolve().parents[3]
_PROGRAM = """
    import socket, time
    requests, pauses = [], []
    time.sleep = pauses.append
    def refused(*arguments, **options):
        requests.append(arguments)
        raise socket.gaierror(-2, "Name or service not known")
    socket.getaddrinfo = refused
    from pathlib import Path
    from tests.stop_core.openai_format import register_small
    from stop_core.clip.loading import load_clip
    register_small(Path({home!r}), "ViT-B-32")  # loading the large one takes seconds
    clip = load_clip("ViT-B-32", "openai")
    print(len(requests), type(clip.model.visual.transformer.resblocks[0].mlp.gelu).__name__)
    try:
        load_clip("ViT-B-16", "openai")
    except OSError as problem:
        print(len(requests), problem)
    print(sum(pauses))
"""


@pytest.fixture(scope="module", params=["0", "1"], ids=["online", "offline"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, subprocess.CompletedProcess[str]]:
    """A process without a network, whose cache of the hub has ViT-B-32 and not ViT-B-16."""
    home = tmp_path_factory.mktemp("hub")
    folder = home / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    register_small(home)
    save_file(openai_state(), folder / "snapshots" / ("0" * 40) / "open_clip_model.safetensors")
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": request.param}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM.format(home=str(home)))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return request.param == "1", done


def test_cached_weights_need_no_network(
    loaded: tuple[bool, subprocess.CompletedProcess[str]],
) -> None:
    _, done = loaded
    assert done.stdout.splitlines()[0] == "0 QuickGELU"
    assert done.stderr == ""


def test_without_a_network_loading_fails_at_once_with_one_sentence(
    loaded: tuple[bool, subprocess.CompletedProcess[str]],
) -> None:
    offline, done = loaded
    _, message, seconds = done.stdout.splitlines()
    requests = int(message.split()[0])
    assert requests == 0 if offline else requests <= 2
    repository = "timm/vit_base_patch16_clip_224.openai"
    for part in ("'openai' of the model ViT-B-16", repository, "--pretrained FILE", "openai=FILE"):
        assert part in message
    assert float(seconds) < 4


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            weights.huggingface_hub,
            "hf_hub_url",
            lambda *_: f"http://127.0.0.1:{silent.getsockname()[1]}/",
        )
        monkeypatch.setattr(weights, "_TIMEOUT", 0.5)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"does not answer within 0\.5 s|timed out"):
            weights.hub_file("someone/something", "a.bin", wanted="the weights", advice="give FILE")
        assert time.monotonic() - began < 5
