"""Maps the folders of the repository to packages.

The wheel has two top-level names, both ours: `stop_core`, and `stop_pipelines` for `pipelines/`,
with `sweeps/` as data inside of it. The names `sweeps` and `pipelines` would clash with other
distributions, for example with the one that `wandb[sweeps]` installs.
"""

from setuptools import find_namespace_packages, find_packages, setup

pipelines = find_packages(include=["pipelines", "pipelines.*"])
data = find_namespace_packages(include=["sweeps", "sweeps.*"])
setup(
    packages=[
        *find_packages(include=["stop_core", "stop_core.*"]),
        *(f"stop_{name}" for name in pipelines),
        *(f"stop_pipelines.{name}" for name in data),
    ],
    package_dir={"stop_pipelines": "pipelines", "stop_pipelines.sweeps": "sweeps"},
    package_data={"": ["*.yaml", "*.csv", "*.json", "*.safetensors", "*.mp4", "*.jinja"]},
)
