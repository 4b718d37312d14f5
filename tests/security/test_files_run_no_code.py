"""No file can run code when it is read: neither a pickle of any name, nor YAML with tags."""

import ast
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipelines.cli.options import parse
from pipelines.sweeping.read_space import read_space
from pipelines.train import TrainConfig
from stop_core.cache import FrameCache
from stop_core.clip.loading import load_clip
from stop_core.settings.class_templates import find_templates
from stop_core.training.checkpoint import AVERAGE, BEHAVIOUR, BEST_PROMPTS, OPTIMIZER, Checkpoint
from stop_core.training.run_state import LAST_PROMPTS, Origin, RunProgress
from tests.caches import write_cache

ROOT = Path(__file__).resolve().parents[2]
_RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "_pickle"}
# MSVD's captions are published as a pickle; its reader accepts only dictionaries, lists and texts.
# OpenAI's weights are TorchScript archives; the reader accepts only tensors and plain values.
_MAY = {
    "stop_core/datasets/msvd.py": "pickle",
    "stop_core/clip/weights.py": "pickle",
    "pipelines/stop.py": "exec",
}
_FORBIDDEN = {
    *("eval", "exec", "os.system", "os.popen", "torch.jit.load", "pd.read_pickle"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"),
}


def _sources() -> Iterator[tuple[str, ast.AST]]:
    for package in ("stop_core", "sweeps", "pipelines", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _dangers(tree: ast.AST) -> Iterator[str]:
    """Yields the calls and imports that can run code of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[-1] in _RUNS_CODE)
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if name in _RUNS_CODE)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in _FORBIDDEN:
                yield name
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            for word in ("allow_pickle", "shell", "trust_remote_code"):
                if keywords.get(word, "False") != "False":
                    yield f"{name} with {word}"


def test_no_source_can_run_code_of_a_file() -> None:
    found = {path: [d for d in _dangers(tree) if d != _MAY.get(path)] for path, tree in _sources()}
    assert len(found) > 100
    assert {path: dangers for path, dangers in found.items() if dangers} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from ray import cloudpickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
    ],
)
def test_the_check_of_the_sources_detects_each_danger(source: str) -> None:
    assert list(_dangers(ast.parse(source)))


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Path]:
    """A pickle that makes a folder if it is loaded; asserts that it was not."""
    target = tmp_path / "ran"
    path = tmp_path / "bomb"
    path.write_bytes(pickle.dumps({"state_dict": _Bomb(target)}))
    yield path
    assert not target.exists(), "the pickle was loaded"


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "made")))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("name", [LAST_PROMPTS, BEST_PROMPTS, AVERAGE, BEHAVIOUR, OPTIMIZER])
def test_a_pickle_in_a_checkpoint_is_refused(tmp_path: Path, bomb: Path, name: str) -> None:
    origin = Origin("run", "c" * 12, "d" * 64, "", {})
    Checkpoint(RunProgress(), origin, {}, {}, {}, {}, {"state": {}}).save(tmp_path)
    assert Checkpoint.load(tmp_path, []).origin == origin
    shutil.copyfile(bomb, tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        Checkpoint.load(tmp_path, [])


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_pickle_instead_of_tower_weights_is_refused(
    tmp_path: Path, bomb: Path, ending: str
) -> None:
    if ending == ".pt":
        torch.save({"state_dict": _Bomb(tmp_path / "ran")}, bomb)
    path = bomb.rename(bomb.with_suffix(ending))
    with pytest.raises(OSError, match="could not be loaded"):
        load_clip("ViT-S-32", str(path))


@pytest.mark.parametrize("name", ["shard", "manifest.json", "job.json"])
def test_a_pickle_in_a_cache_is_refused(
    tmp_path: Path, bomb: Path, write_video: Callable[..., Path], name: str
) -> None:
    cache = _cache(tmp_path, write_video)
    files = {path.name: path for path in cache.rglob("*") if path.is_file()}
    (shard,) = (path for key, path in files.items() if key.endswith(".parquet") and "train" in key)
    assert len(FrameCache(cache).split("train").read([0])) == 1
    damaged = shard if name == "shard" else files[name]
    damaged.write_bytes(bomb.read_bytes().ljust(damaged.stat().st_size, b"\0"))
    if name == "job.json":  # not read in a finished cache
        assert len(FrameCache(cache).split("train").read([0])) == 1
        return
    with pytest.raises(ValueError, match=damaged.name):
        FrameCache(cache).split("train").read([0])


def _cache(root: Path, write_video: Callable[..., Path]) -> Path:
    """Makes a finished cache of one clip."""
    write_video(root / "wave" / "one.avi")
    (root / "clips.csv").write_text("path,split,label\nwave/one.avi,train,wave\n")
    return write_cache("csv", root, root / "cache", frames=2, size=32)


@pytest.mark.parametrize("what", ["config", "templates", "space"])
def test_yaml_with_object_tags_is_refused(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, path = tmp_path / "ran", tmp_path / "file.yaml"
    path.write_text(f"method: !!python/object/apply:os.mkdir [{target}]")
    if what == "config":
        with pytest.raises(SystemExit):
            parse(TrainConfig, ["--config", str(path)])
        assert "cannot be read" in capsys.readouterr().err
    else:
        read = read_space if what == "space" else (lambda p: find_templates((str(p),), "motion"))
        with pytest.raises(ValueError, match=r"YAML|cannot be read"):
            read(path)
    assert not target.exists()
