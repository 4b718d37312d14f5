"""The model card: a README.md in the format of the Hugging Face Hub."""

from pathlib import Path

import yaml
from open_clip.pretrained import get_pretrained_cfg, is_pretrained_cfg

from stop_core.clip.pretrained import HUB as HUB_TOWER
from stop_core.datasets.registry import division
from stop_core.storage.escaping import in_markdown, visible
from stop_core.storage.templates import rendered
from stop_core.tiny.shipped import TINY_TOWERS
from stop_core.trained_model.files import ModelRecord

# By the beginning of open_clip's tag. Other tags: unknown.
_LICENCES = {
    "openai": ("MIT", "https://github.com/openai/CLIP/blob/main/LICENSE"),
    "laion": ("MIT", "https://huggingface.co/laion"),
    "datacomp": ("MIT", "https://huggingface.co/laion"),
    "metaclip": ("CC-BY-NC-4.0", "https://github.com/facebookresearch/MetaCLIP"),
}
# The hub's names of metrics, by the endings of ours.
_KINDS = dict.fromkeys(("top1", "top5", "mean_class"), "accuracy")
_KINDS |= dict.fromkeys(("_r1", "_r5", "_r10"), "recall")


def render_card(record: ModelRecord) -> str:
    """Returns the text of README.md: YAML for the hub, then Markdown for a reader."""
    config, how, origin = record.config, record.preprocessing, record.provenance
    count, short_side = how.decoded
    front_matter = yaml.safe_dump(_front_matter(record), sort_keys=False, allow_unicode=True)
    licence, licence_source = _licence(config.tower, config.pretrained or "")
    measured = [name.partition("/") for name in origin.metrics if "/" in name]
    rows = {
        "training": origin.run,
        "dataset": division(origin.dataset, origin.fold) if origin.dataset else "",
        "data hash": origin.data_hash,
        "settings": f"{origin.config_hash} (config.yaml)" if origin.config_hash else "",
        "seed": str(config.seed),
        "code": origin.git_commit,
        "MLflow run": origin.mlflow_run_id,
        "fingerprint of the tower": origin.tower_fingerprint,
        "versions": ", ".join(f"{k} {v}" for k, v in origin.versions.items()),
    }
    return rendered(
        Path(__file__).with_name("card.md.jinja"),
        in_markdown,
        trim=True,
        front_matter=visible(front_matter).strip(),
        config=config,
        how=how,
        origin=origin,
        classes=record.classes,
        metrics=origin.metrics,
        splits=sorted({split for split, _, _ in measured}, reverse=True),
        names=sorted({name for _, _, name in measured}),
        count=count,
        short_side=short_side,
        rows=rows,
        licence=licence,
        licence_source=licence_source,
        is_tiny=config.tower in TINY_TOWERS,
    )


def _licence(tower: str, pretrained: str) -> tuple[str, str]:
    if tower in TINY_TOWERS:
        return "Apache-2.0", "pretrained by this project on pictures that it renders itself"
    if pretrained == "random":
        return "none", "the weights are random"
    for beginning, licence in _LICENCES.items():
        if pretrained.lower().startswith(beginning):
            return licence
    return "unknown", "see the page that the weights come from"


def _front_matter(record: ModelRecord) -> dict[str, object]:
    config, origin = record.config, record.provenance
    task = "video-classification" if record.classes else "feature-extraction"
    values: dict[str, object] = {
        "library_name": "stop-video",
        "pipeline_tag": task,
        "tags": ["video", "clip", "prompt-tuning", config.method],
    }
    if config.tower in TINY_TOWERS and origin.dataset.startswith("motion"):
        values["license"] = "apache-2.0"  # all of it was made by this project
    else:  # its author chooses; the terms of the dataset matter
        values["license"], values["license_name"] = "other", "see-card"
        values["license_link"] = "README.md"
    if base := _base_model(config.tower, config.pretrained or ""):
        values["base_model"] = base
    measured: dict[str, list[dict[str, object]]] = {}
    for name, value in sorted(origin.metrics.items()):
        split, _, metric = name.partition("/")
        if metric:
            kind = next(
                (kind for ending, kind in _KINDS.items() if metric.endswith(ending)), metric
            )
            measured.setdefault(split, []).append({"type": kind, "name": metric, "value": value})
    if origin.dataset:
        values["datasets"] = [origin.dataset]
    if origin.dataset and measured:
        data = {"type": origin.dataset, "name": division(origin.dataset, origin.fold)}
        results: list[dict[str, object]] = [
            {"task": {"type": task}, "dataset": data | {"split": split}, "metrics": metrics}
            for split, metrics in measured.items()
        ]
        values["model-index"] = [{"name": origin.run, "results": results}]
    return values


def _base_model(tower: str, pretrained: str) -> str:
    """Returns the repository of the tower's weights on the hub; "" if they have none."""
    if tower.startswith(HUB_TOWER):
        return tower.removeprefix(HUB_TOWER)
    tag = pretrained.partition("=")[0]  # of TAG=FILE, too
    weights = get_pretrained_cfg(tower, tag) if is_pretrained_cfg(tower, tag) else {}
    return str(weights.get("hf_hub", "").rpartition("/")[0])
