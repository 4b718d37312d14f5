"""The model card: a README.md in the format of the Hugging Face Hub."""

from functools import cache

import yaml
from jinja2 import Environment, Template

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
# Every value that a user can choose passes the filter `md`, which escapes markup.
_CARD = """\
---
{{ front_matter }}
---

# {{ (config.method ~ " on " ~ (origin.dataset or "no data")) | md }}

The method `{{ config.method }}` on the CLIP tower \
{{ (config.tower ~ " (" ~ (config.pretrained or "its own weights") ~ ")") | md }}. It \
{% if classes %}recognises {{ classes | length }} classes of videos\
{% else %}embeds videos and sentences in one space, to find either by the other{% endif %}. The \
method STOP is by Liu et al. (CVPR 2025, [arXiv 2503.15973](https://arxiv.org/abs/2503.15973)); \
this is an independent implementation.

## Metrics

{% if splits %}
| metric | {{ splits | map("md") | join(" | ") }} |
|---|{{ "---:|" * (splits | length) }}
{% for name in names %}
| {{ name | md }} | \
{% for split in splits %}\
{% set value = metrics.get(split ~ "/" ~ name) %}\
{{ "" if value is none else "%.4f" % value }}{{ "" if loop.last else " | " }}\
{% endfor %} |
{% endfor %}

{% if metrics.best_epoch %}The weights are of epoch {{ "%.0f" % metrics.best_epoch }}. {% endif %}\
{% if "val" in splits %}Validation chose the epoch, so its numbers are slightly optimistic; test \
was {{ "measured once, at the end" if "test" in splits else "not measured" }}. {% endif %}\
One seed ({{ config.seed }}): the spread between seeds is unknown.
{% elif origin.run %}
None: the model was not measured for these labels, which it was given after its training.
{% else %}
None: nothing was measured with this model.
{% endif %}

## Input and output

{{ how.frames }} frames of a video, uint8 RGB, [B, {{ how.frames }}, {{ how.size }}, \
{{ how.size }}, 3]: \
{% if how.sampling != "segments" %}\
{{ how.frames }} of {{ count }} frames that are sampled as {{ how.sampling }} (docs/cache.md), \
{% else %}{% if count != how.frames %}of the middles of {{ count }} equal segments, {% endif %}\
the middles of {{ how.frames }} equal segments, {% endif %}resized to a short side \
of {{ short_side }} pixels (bicubic, antialiased), cropped to the centre. The model \
itself subtracts the mean {{ how.mean }} and divides by {{ how.std }}.

{% if classes %}
The output is the probabilities of these classes, in this order:

{% for label in classes %}
{{ loop.index0 }}. {{ label.name | md }}: {{ label.sentences[:3] | join("; ") | md }}\
{{ "; ..." if label.sentences[3:] else "" }}
{% endfor %}

{% endif %}
## Usage

```python
from pathlib import Path

import torch
from stop_core.trained_model.model import TrainedModel

model = TrainedModel.load("this folder")
clip = model.preprocessing.decode(Path("video.mp4"))
frames = torch.from_numpy(clip.frames)[None]
{% if classes %}
model.class_probabilities(frames)  # [1, classes]
{% else %}
model.embed_videos(frames) @ model.embed_texts(["a dog jumps"]).T
{% endif %}
```

## Provenance

| | |
|---|---|
{% for key, value in rows.items() if value %}
| {{ key }} | {{ value | md }} |
{% endfor %}

The licence of the tower's weights: {{ licence }} ({{ licence_source }}). They are not in this \
folder, except for `clip4clip`, which trains all of them. Whether the trained tensors can be \
redistributed also depends on the terms of the dataset.

## Limits

{% if classes %}
- It knows only its classes: a video of anything else is given one of them, and the \
probabilities are not calibrated.
{% endif %}
- It sees {{ how.frames }} frames of a video of any length, and no sound.
- CLIP's weights were learned from texts and pictures of the web, with their biases. Do not use \
it to decide about people.
{% if is_tiny %}
- The tiny tower knows rendered shapes, and nothing of real videos.
{% endif %}
"""


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
    return _template().render(
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


@cache
def _template() -> Template:
    markdown = Environment(trim_blocks=True, keep_trailing_newline=True)
    markdown.filters["md"] = in_markdown
    return markdown.from_string(_CARD)


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
