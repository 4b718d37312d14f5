"""The model card: a README.md in the format of the Hugging Face Hub."""

import yaml

from stop_core.datasets.registry import division
from stop_core.storage.escaping import in_markdown, visible
from stop_core.tiny.shipped import TINY_TOWERS
from stop_core.trained_model.files import ModelRecord

# By the beginning of open_clip's tag. Other tags: unknown.
_LICENCES = {
    "openai": ("MIT", "https://github.com/openai/CLIP/blob/main/LICENSE"),
    "laion": ("MIT", "https://huggingface.co/laion"),
    "datacomp": ("MIT", "https://huggingface.co/laion"),
    "metaclip": ("CC-BY-NC-4.0", "https://github.com/facebookresearch/MetaCLIP"),
}
_CARD = """\
---
{front_matter}
---

# {title}

The method `{config.method}` on the CLIP tower {tower}. It {purpose}. The method STOP is by \
Liu et al. (CVPR 2025, [arXiv 2503.15973](https://arxiv.org/abs/2503.15973)); this is an \
independent implementation.

## Metrics

{metrics}

## Input and output

{how.frames} frames of a video, uint8 RGB, [B, {how.frames}, {how.size}, {how.size}, 3]: \
{of_them}the middles of {how.frames} equal segments, resized to a short side of {short_side} \
pixels (bicubic, antialiased), cropped to the centre. The model itself subtracts the mean \
{how.mean} and divides by {how.std}.

{classes}## Usage

```python
from pathlib import Path

import torch
from stop_core.trained_model.model import TrainedModel

model = TrainedModel.load("this folder")
clip = model.preprocessing.decode(Path("video.mp4"))
frames = torch.from_numpy(clip.frames)[None]
{call}
```

## Provenance

| | |
|---|---|
{provenance}

The licence of the tower's weights: {licence} ({licence_source}). They are not in this folder, \
except for `clip4clip`, which trains all of them. Whether the trained tensors can be redistributed \
also depends on the terms of the dataset.

## Limits

{limits}
"""


def _licence(tower: str, pretrained: str) -> tuple[str, str]:
    """Returns the licence of a tower's weights, and where to read it."""
    if tower in TINY_TOWERS:
        return "Apache-2.0", "pretrained by this project on pictures that it renders itself"
    if pretrained == "random":
        return "none", "the weights are random"
    for beginning, licence in _LICENCES.items():
        if pretrained.lower().startswith(beginning):
            return licence
    return "unknown", "see the page that the weights come from"


def render_card(record: ModelRecord) -> str:
    """Returns the text of README.md: YAML for the hub, then Markdown for a reader."""
    config, how = record.config, record.preprocessing
    count, short_side = how.decoded
    front_matter = yaml.safe_dump(_front_matter(record), sort_keys=False, allow_unicode=True)
    licence, licence_source = _licence(config.tower, config.pretrained or "")
    return _CARD.format(
        front_matter=visible(front_matter).strip(),
        title=in_markdown(f"{config.method} on {record.provenance.dataset or 'no data'}"),
        config=config,
        how=how,
        tower=in_markdown(f"{config.tower} ({config.pretrained or 'its own weights'})"),
        purpose=f"recognises {len(record.classes)} classes of videos"
        if record.classes
        else "embeds videos and sentences in one space, to find either by the other",
        metrics=_metrics(record),
        of_them=f"of the middles of {count} equal segments, " if count != how.frames else "",
        short_side=short_side,
        classes=_classes(record),
        call="model.class_probabilities(frames)  # [1, classes]"
        if record.classes
        else 'model.embed_videos(frames) @ model.embed_texts(["a dog jumps"]).T',
        provenance=_provenance(record),
        licence=licence,
        licence_source=licence_source,
        limits=_limits(record),
    )


def _front_matter(record: ModelRecord) -> dict[str, object]:
    config, origin = record.config, record.provenance
    task = "video-classification" if record.classes else "feature-extraction"
    values: dict[str, object] = {
        "library_name": "stop-video",
        "pipeline_tag": task,
        "tags": ["video", "clip", "prompt-tuning", config.method],
        "license": "other",
        "license_name": "see-below",
    }
    metrics = [
        {"type": name, "name": name, "value": value}
        for name, value in sorted(origin.metrics.items())
        if "/" in name
    ]
    if origin.dataset:
        values["datasets"] = [origin.dataset]
    if origin.dataset and metrics:
        data = {"type": origin.dataset, "name": division(origin.dataset, origin.fold)}
        results = [{"task": {"type": task}, "dataset": data, "metrics": metrics}]
        values["model-index"] = [{"name": origin.run, "results": results}]
    return values


def _metrics(record: ModelRecord) -> str:
    metrics = record.provenance.metrics
    measured = [name.partition("/") for name in metrics if "/" in name]
    splits = sorted({split for split, _, _ in measured}, reverse=True)
    if not splits:
        return (
            "None: the model was not measured for these labels, which it was given after its "
            "training."
            if record.provenance.run
            else "None: nothing was measured with this model."
        )
    lines = [
        f"| metric | {' | '.join(map(in_markdown, splits))} |",
        "|---|" + "---:|" * len(splits),
    ]
    for name in sorted({name for _, _, name in measured}):
        row = (metrics.get(f"{split}/{name}") for split in splits)
        cells = ("" if value is None else f"{value:.4f}" for value in row)
        lines.append(f"| {in_markdown(name)} | {' | '.join(cells)} |")
    epoch = metrics.get("best_epoch")
    notes = f"The weights are of epoch {epoch:.0f}. " if epoch else ""
    if "val" in splits:
        notes += "Validation chose the epoch, so its numbers are slightly optimistic; test was "
        notes += "measured once, at the end. " if "test" in splits else "not measured. "
    notes += f"One seed ({record.config.seed}): the spread between seeds is unknown."
    return "\n".join([*lines, "", notes])


def _classes(record: ModelRecord) -> str:
    if not record.classes:
        return ""
    lines = ["The output is the probabilities of these classes, in this order:", ""]
    for number, label in enumerate(record.classes):
        more = "; ..." if len(label.sentences) > 3 else ""
        sentences = in_markdown("; ".join(label.sentences[:3]))
        lines.append(f"{number}. {in_markdown(label.name)}: {sentences}{more}")
    return "\n".join([*lines, "", ""])


def _provenance(record: ModelRecord) -> str:
    origin = record.provenance
    rows = {
        "training": origin.run,
        "dataset": division(origin.dataset, origin.fold) if origin.dataset else "",
        "data hash": origin.data_hash,
        "settings": f"{origin.config_hash} (config.yaml)" if origin.config_hash else "",
        "seed": str(record.config.seed),
        "code": origin.git_commit,
        "MLflow run": origin.mlflow_run_id,
        "fingerprint of the tower": origin.tower_fingerprint,
        "versions": ", ".join(f"{k} {v}" for k, v in origin.versions.items()),
    }
    return "\n".join(f"| {key} | {in_markdown(value)} |" for key, value in rows.items() if value)


def _limits(record: ModelRecord) -> str:
    lines = [
        f"- It sees {record.preprocessing.frames} frames of a video of any length, and no sound.",
        "- CLIP's weights were learned from texts and pictures of the web, with their biases. Do "
        "not use it to decide about people.",
    ]
    if record.classes:
        lines[:0] = [
            "- It knows only its classes: a video of anything else is given one of them, and the "
            "probabilities are not calibrated."
        ]
    if record.config.tower in TINY_TOWERS:
        lines.append("- The tiny tower knows rendered shapes, and nothing of real videos.")
    return "\n".join(lines)
