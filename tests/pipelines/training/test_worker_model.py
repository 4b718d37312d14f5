"""The compiled training step: one graph with the eager result, and no silent failure."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from pipelines.cli.console import RunError
from pipelines.training.worker_model import compile_training
from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.methods import build_method
from stop_core.model.running_scale import RunningScale
from stop_core.model.video_model import VideoModel
from stop_core.runtime.devices import autocast
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig

SHAPE = (3, 4, 32, 32, 3)
STOP = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4, normalize="running")
CONFIG = ExperimentConfig(stop=STOP, precision="fp32")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch._dynamo.config.patch(recompile_limit=8):
        torch._dynamo.reset()
        counters.clear()
        yield
        torch._dynamo.reset()
    torch.set_num_threads(threads)


@pytest.fixture
def clip() -> FrozenClip:
    """The tiny CLIP with one block: compiling a block takes seconds, and all are alike."""
    clip = load_clip("tiny")
    clip.model.visual.transformer.resblocks = clip.model.visual.transformer.resblocks[:1]
    return clip


def _model(clip: FrozenClip, config: ExperimentConfig = CONFIG) -> VideoModel:
    torch.manual_seed(0)
    return build_method(config, clip, 3)


def _frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, *SHAPE[1:]), generator=generator, dtype=torch.uint8)


def _results(model: VideoModel, config: ExperimentConfig = CONFIG) -> dict[str, Tensor]:
    """The embeddings of a training batch, and the gradients of a sum over them."""
    with autocast(config, torch.device("cpu")):
        out = model.encode_video(_frames(3)).float()
    weights_BE = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (out * weights_BE).sum().backward()
    gradients = {name: p.grad for name, p in model.trainable().items() if p.grad is not None}
    return {"": out, **gradients}


def _compile(
    model: VideoModel, config: ExperimentConfig = CONFIG, *, required: bool = True
) -> tuple[bool, list[str]]:
    lines: list[str] = []
    done = compile_training(model, config, SHAPE, required=required, report=lines.append)
    return done, lines


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


def _compile_with(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses a backend, as Inductor and g++ take a minute; no graph may break."""
    compiled = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr("torch.compile", compiled)


def test_only_full_training_batches_are_compiled_and_compiling_changes_no_state(
    clip: FrozenClip, compiled_sizes: list[int]
) -> None:
    model = _model(clip)
    before = model.prompt_state_dict()
    done, lines = _compile(model)
    assert done
    assert "compiling the model" in lines[0]
    assert "compiled the model in" in lines[-1]
    after = model.prompt_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(m._seen is None for m in model.modules() if isinstance(m, RunningScale))
    model.train()
    for count in (3, 2, 3, 1):
        model.encode_video(_frames(count))
    model.eval()
    model.encode_video(_frames(3))
    assert compiled_sizes == [3, 3, 3], (
        "of the first step while compiling, and of two training batches"
    )


def test_a_model_that_cannot_be_compiled_is_trained_eagerly_or_refused(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(encode: Any) -> Any:
        def fails(frames: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nmore lines")

        return fails

    monkeypatch.setattr("torch.compile", compiled)
    model = _model(clip)
    with pytest.raises(RunError, match=r"\(no C\+\+ compiler\); give --compile off"):
        _compile(model)
    done, lines = _compile(model, required=False)
    assert not done
    assert "no C++ compiler" in lines[-1]
    assert "trained without" in lines[-1]
    assert _results(model).keys() == {"", *model.trainable()}


def test_a_compiled_model_with_another_gradient_is_refused(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda encode: lambda frames: 3 * encode(frames))
    model = _model(clip)
    with pytest.raises(RunError, match="its gradient differs from the one without compilation"):
        _compile(model)
    dropout = replace(CONFIG, stop=replace(STOP, dropout=0.5))
    assert _compile(_model(clip, dropout), dropout)[0], "nothing to compare with"


def test_a_step_is_one_graph_with_the_eager_result_and_no_later_step_or_trial_compiles(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Inductor compiles: its operators, and its partition into forward and backward pass.
    _compile_with("aot_eager_decomp_partition", monkeypatch)
    stop = replace(STOP, attention="joint", normalize="per_frame")
    config = replace(CONFIG, precision="bf16", stop=stop)
    first, eager = _model(clip, config), _model(clip, config)
    _compile(first, config)
    assert _graphs() == 1
    eager.train()
    expected = _results(eager, config)
    with torch.compiler.set_stance("fail_on_recompile"):
        second = _model(clip, config)
        _compile(second, config)
        for model in (first, second):
            found = _results(model, config)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert (found[name] - value).norm() <= 0.03 * value.norm(), name
            model.encode_video(_frames(2))
            model.eval()
            model.encode_video(_frames(3))


def test_a_number_of_a_trial_becomes_an_input_when_it_changes(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compile_with("eager", monkeypatch)
    stop = replace(STOP, normalize="per_frame")
    for number, graphs in ((0.3, 1), (0.4, 2), (0.6, 2), (0.7, 2)):
        own = replace(CONFIG, stop=replace(stop, alpha=number, beta=number, eta=5 * number))
        model = _model(clip, own)
        _compile(model, own)
        assert _graphs() == graphs
        eager = _model(clip, own)
        eager.train()
        assert torch.allclose(_results(model)[""], _results(eager)[""], atol=1e-6)


def test_inductor_generates_code_for_the_whole_step(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/compile.py` runs the code: g++ needs a second for each of its functions."""
    sources: list[str] = []

    def not_built(self: object, argtypes: object, source: str) -> Callable[..., None]:
        sources.append(source)
        return lambda *arguments: None

    _compile_with("inductor", monkeypatch)
    monkeypatch.setattr("torch._inductor.async_compile.AsyncCompile.cpp_pybinding", not_built)
    # Looking for vector instructions takes g++, and processes that import torch.
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", list)
    with torch._inductor.config.patch(fx_graph_cache=False, pattern_matcher=False):
        _compile(_model(clip))
    assert _graphs() == 1
    assert sources
    assert all("kernel" in source for source in sources)
