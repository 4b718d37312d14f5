"""Shares one Ray with the tests of the pipelines, and installs the package of a page."""

import re
from pathlib import Path

import pytest

from tests.own_package import install_project, see
from tests.pipelines.conftest import local_ray, no_figures, trained_here

__all__ = ["local_ray", "no_figures", "trained_here"]

PAGE = Path(__file__).resolve().parents[2] / "docs/your-own-method.md"


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the package of docs/your-own-method.md; returns the folder with its files.

    Its tower is replaced by a small one.
    """
    folder = tmp_path / "own"
    folder.mkdir()
    found = re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', PAGE.read_text(), re.M | re.S)
    files: dict[str, str] = {}
    for name, text in found:
        files[name] = files.get(name, "") + text
    for name, text in files.items():
        (folder / name).write_text(text)
    module = files["my_video.py"].replace('"ViT-B-32"', '"own-vit-8-of-32"')
    shape = "224, patches=49, blocks=12, width=768"
    assert shape in module
    module = module.replace(shape, "32, patches=16, blocks=1, width=16")
    models = folder / "models"
    models.mkdir()
    (models / "own-vit-8-of-32.json").write_text(
        '{"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, '
        '"patch_size": 8, "image_size": 32}, "text_cfg": {"width": 8, "heads": 2, "layers": 1}}'
    )
    module += f"\nopen_clip.add_model_config({str(models)!r})\n"
    install_project(folder, files["pyproject.toml"], module)
    see(folder, monkeypatch)
    return folder
