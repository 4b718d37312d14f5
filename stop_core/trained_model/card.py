"""The card of a trained model: a README as the Hugging Face Hub shows it."""

import yaml

from stop_core.datasets.registry import division
from stop_core.storage.escaping import in_markdown, visible
from stop_core.tiny.shipped import TINY_TOWERS
from stop_core.trained_model.files import ModelRecord

_BASE_MODELS = {"openai": "OpenAI's CLIP", "": "the tiny CLIP of this project"}
# By the beginning of open_clip's tag; what is not listed is not known here.
_LICENCES = {
    "openai": ("MIT", "https://github.com/openai/CLIP/blob/main/LICENSE"),
    "laion": ("MIT", "https://huggingface.co/laion"),
    "datacomp": ("MIT", "https://huggingface.co/laion"),
    "metaclip": ("CC-BY-NC-4.0", "https://github.com/facebookresearch/MetaCLIP"),
}
_UNKNOWN = ("unknown", "look at the page that the weights come from")


def tower_licence(tower: str, pretrained: str | None) -> tuple[str, str]:
    """Name of the licence of a tower's weights, and where it can be read."""
    if tower in TINY_TOWERS:
        return "Apache-2.0", "pretrained by this project on pictures that it renders itself"
    if pretrained == "random":
        return "none", "the weights are random"
    for beginning, licence in _LICENCES.items():
        if (pretrained or "").lower().startswith(beginning):
            return licence
    return _UNKNOWN


def render_card(record: ModelRecord) -> str:
    """The text of README.md: YAML for the hub, then Markdown for a reader."""
    parts = [
        "---",
        visible(yaml.safe_dump(_front_matter(record), sort_keys=False, allow_unicode=True)).strip(),
        "---",
        "",
        f"# {in_markdown(_title(record))}",
        "",
        *_summary(record),
        *_measures(record),
        *_inputs(record),
        *_use(record),
        *_origin(record),
        *_limits(record),
    ]
    return "\n".join(parts) + "\n"


def _title(record: ModelRecord) -> str:
    return f"{record.config.method} on {record.provenance.dataset or 'no data'}"


def _front_matter(record: ModelRecord) -> dict[str, object]:
    config, origin = record.config, record.provenance
    values: dict[str, object] = {
        "library_name": "stop-video",
        "pipeline_tag": "video-classification" if record.classes else "feature-extraction",
        "tags": ["video", "clip", "prompt-tuning", config.method],
        "license": "other",
        "license_name": "see-below",
    }
    if origin.dataset:
        values["datasets"] = [origin.dataset]
        task = {"type": values["pipeline_tag"]}
        data = {"type": origin.dataset, "name": division(origin.dataset, origin.fold)}
        metrics = [
            {"type": name, "name": name, "value": value}
            for name, value in sorted(origin.metrics.items())
            if "/" in name
        ]
        if metrics:
            results = [{"task": task, "dataset": data, "metrics": metrics}]
            values["model-index"] = [{"name": origin.run, "results": results}]
    return values


def _summary(record: ModelRecord) -> list[str]:
    config = record.config
    weights = config.pretrained or "its own weights"
    what = (
        f"recognises {len(record.classes)} classes of videos"
        if record.classes
        else "embeds videos and sentences in one space, to find either by the other"
    )
    tower = in_markdown(f"{config.tower} ({weights})")
    return [
        f"The method `{config.method}` on the CLIP tower {tower}. "
        f"It {what}. The method STOP is by Liu et al. (CVPR 2025, "
        "[arXiv 2503.15973](https://arxiv.org/abs/2503.15973)); this is an independent "
        "implementation.",
        "",
    ]


def _measures(record: ModelRecord) -> list[str]:
    metrics = record.provenance.metrics
    splits = sorted({name.partition("/")[0] for name in metrics if "/" in name}, reverse=True)
    if not splits:
        why = (
            "it was not measured for these labels, which it was given after its training"
            if record.provenance.run
            else "nothing was measured with this model"
        )
        return ["## Measures", "", f"None: {why}.", ""]
    names = sorted({name.partition("/")[2] for name in metrics if "/" in name})
    lines = ["## Measures", "", f"| measure | {' | '.join(map(in_markdown, splits))} |"]
    lines.append("|---|" + "---:|" * len(splits))
    for name in names:
        row = (metrics.get(f"{split}/{name}") for split in splits)
        cells = ("" if value is None else f"{value:.4f}" for value in row)
        lines.append(f"| {in_markdown(name)} | {' | '.join(cells)} |")
    chosen = metrics.get("best_epoch")
    how = f"Epoch {chosen:.0f} was kept. " if chosen else ""
    if "val" in splits:
        how += "Validation chose the epoch, so its numbers are a little too good; test was "
        how += "measured once, at the end. " if "test" in splits else "not looked at. "
    return [*lines, "", f"{how}One seed ({record.config.seed}): it says nothing of the spread.", ""]


def _inputs(record: ModelRecord) -> list[str]:
    how = record.preprocessing
    count, short_side = how.decoded
    of_them = f"of the middles of {count} equal segments, " if count != how.frames else ""
    lines = [
        "## What goes in and comes out",
        "",
        f"{how.frames} frames of a video, uint8 RGB, [B, {how.frames}, {how.size}, {how.size}, 3]:"
        f" {of_them}the middles of {how.frames} equal segments, the short side brought to "
        f"{short_side} pixels (bicubic, antialiased), the centre cropped. The model "
        f"itself subtracts the mean {_numbers(how.mean)} and divides by {_numbers(how.std)}.",
        "",
    ]
    if record.classes:
        lines += ["Out come the probabilities of these classes, in this order:", ""]
        lines += [
            f"{number}. {in_markdown(label.name)}: {in_markdown('; '.join(label.sentences[:3]))}"
            + ("; ..." if len(label.sentences) > 3 else "")
            for number, label in enumerate(record.classes)
        ]
        lines.append("")
    return lines


def _use(record: ModelRecord) -> list[str]:
    last = (
        "model.class_probabilities(frames)  # [1, classes]"
        if record.classes
        else 'model.embed_videos(frames) @ model.embed_texts(["a dog jumps"]).T'
    )
    return [
        "## How to use it",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "import torch",
        "from stop_core.trained_model.model import TrainedModel",
        "",
        'model = TrainedModel.load("this folder")',
        'clip = next(model.preprocessing.decoder().decode([Path("video.mp4")]))',
        "frames = torch.from_numpy(clip.frames.copy())[None]",
        last,
        "```",
        "",
    ]


def _origin(record: ModelRecord) -> list[str]:
    config, origin = record.config, record.provenance
    name, where = tower_licence(config.tower, config.pretrained)
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
    return [
        "## Where it comes from",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {in_markdown(value)} |" for key, value in rows.items() if value),
        "",
        f"The weights of the tower are under the licence: {name} ({where}). They are not in this "
        "folder, but for `clip4clip`, which changes all of them. Whether the trained tensors may "
        "be passed on also depends on the terms of the dataset.",
        "",
    ]


def _limits(record: ModelRecord) -> list[str]:
    lines = ["## Limits", ""]
    if record.classes:
        lines.append(
            "- It knows its classes alone: a video of anything else is given one of them, and the "
            "probabilities are not calibrated."
        )
    lines += [
        f"- It sees {record.preprocessing.frames} frames of a video, whatever its length, and no "
        "sound.",
        "- CLIP's weights were learned from texts and pictures of the web, with their biases. Do "
        "not use it to decide about people.",
    ]
    if record.config.tower in TINY_TOWERS:
        lines.append("- The tiny tower knows rendered shapes, and nothing of real videos.")
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
