"""The tiny CLIPs are pretrained, and their tokenizer handles unknown words."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from stop_core.clip.loading import load_clip, tower_shape
from stop_core.clip.pretrained import weights_fingerprint
from stop_core.datasets.motion.scenes import CLASSES
from stop_core.tiny.shipped import TINY, TINY_64, TINY_TOWERS, TinyTower
from stop_core.tiny.tower import BUCKETS, VOCABULARY, TinyTokenizer, build_tiny_clip, load_weights

UNSEEN = ("brush hair", "cartwheel", "catch", "chew", "clap", "climb", "dive", "draw sword")
FIRST_BUCKET = 1 + len(VOCABULARY)
every_tower = pytest.mark.parametrize("tower", TINY_TOWERS.values(), ids=TINY_TOWERS.keys())


def test_known_words_have_an_id_of_their_own_and_case_does_not_matter() -> None:
    tokenizer = TinyTokenizer()
    ids = tokenizer.encode(" ".join(VOCABULARY))
    assert ids == list(range(1, FIRST_BUCKET))
    assert tokenizer.encode("A Cyan  SHAPE") == tokenizer.encode("a cyan shape")


def test_class_texts_of_the_motion_clips_are_known_words_only() -> None:
    tokenizer = TinyTokenizer()
    assert all(
        max(tokenizer.encode("a video of a " + name.replace("_", " "))) < FIRST_BUCKET
        for name in CLASSES
    )


def test_unseen_words_fall_into_the_buckets_and_stay_apart() -> None:
    tokenizer = TinyTokenizer()
    ids = [tokenizer.encode(name) for name in UNSEEN]
    assert all(FIRST_BUCKET <= i < FIRST_BUCKET + BUCKETS for row in ids for i in row)
    assert len({tuple(row) for row in ids}) == len(UNSEEN)


def test_unseen_words_hash_alike_in_every_process() -> None:
    # Python's own hash() would not: these ids were written down.
    assert TinyTokenizer().encode("cartwheel") == [49, 44]


@pytest.mark.parametrize("text", ["", "a red circle", "déjà vu 7 !?", "very " * 100])
def test_the_end_of_text_is_the_arg_max_of_any_text(text: str) -> None:
    tokenizer = TinyTokenizer()
    ids_NL = tokenizer([text])
    length = min(2 + len(tokenizer.encode(text)), 28)
    assert ids_NL.shape == (1, 28)
    assert ids_NL.dtype == torch.long
    assert ids_NL[0, 0] == tokenizer.sot_token_id
    assert ids_NL[0].argmax() == length - 1
    assert ids_NL[0, length - 1] == tokenizer.eot_token_id == tokenizer.vocab_size - 1
    assert not ids_NL[0, length:].any()


@every_tower
def test_unseen_class_names_get_different_embeddings(tower: TinyTower) -> None:
    model = build_tiny_clip(True, tower)
    with torch.no_grad():
        texts_KD = model.encode_text(TinyTokenizer()(list(UNSEEN)), normalize=True)
    assert (texts_KD @ texts_KD.T).fill_diagonal_(0).max() < 0.999


@every_tower
def test_preprocessing_is_read_off_the_model(tower: TinyTower) -> None:
    model = build_tiny_clip(True, tower)
    assert model.visual.image_mean == model.visual.image_std == (0.5, 0.5, 0.5)
    assert model.visual.image_size == (tower.image_size, tower.image_size)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32


@every_tower
def test_what_is_said_of_a_tower_is_what_it_is(tower: TinyTower) -> None:
    clip, shape = load_clip(tower.name), tower_shape(tower.name)
    visual = clip.model.visual
    assert shape is not None
    assert (shape.image_size, shape.patches) == (tower.image_size, tower.grid**2)
    assert visual.grid_size == (tower.grid, tower.grid)
    assert len(visual.positional_embedding) == 1 + shape.patches
    assert len(visual.transformer.resblocks) == shape.blocks


def test_the_two_towers_are_of_16_and_of_64_patches() -> None:
    assert {name: tower.grid**2 for name, tower in TINY_TOWERS.items()} == {
        "tiny": 16,
        "tiny-64": 64,
    }


@every_tower
def test_the_weights_are_small_and_their_provenance_is_theirs(tower: TinyTower) -> None:
    weights = tower.weights
    provenance = json.loads(weights.with_suffix(".json").read_text())
    assert weights.stat().st_size < 3_000_000
    assert provenance["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights_fingerprint(tower.name, None) == provenance["sha256"][:8]
    assert provenance["config"].get("tower", "tiny") == tower.name
    assert provenance["licence"] == "Apache-2.0"
    assert set(provenance["zero_shot"]) == {"size", "colour", "shape", "position", "full"}
    assert {"torch", "open_clip_torch"} <= set(provenance["versions"])
    for key in ("seed", "steps"):
        assert f"--{key} {provenance['config'][key]}" in provenance["command"]
    assert provenance["date"]


def test_the_larger_tower_says_which_weights_it_began_with() -> None:
    provenance = json.loads(TINY_64.weights.with_suffix(".json").read_text())
    assert "--tower tiny-64 --start-from tiny" in provenance["command"]
    assert provenance["start_sha256"] == hashlib.sha256(TINY.weights.read_bytes()).hexdigest()


def test_missing_weights_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tools\.tiny_clip\.pretrain"):
        load_weights(build_tiny_clip(pretrained=False), tmp_path / "none.safetensors")


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="another tiny CLIP"):
        load_weights(torch.nn.Linear(2, 2), TINY.weights)


def test_weights_of_another_grid_fit_only_where_they_are_resized() -> None:
    model = build_tiny_clip(False, TINY_64)
    with pytest.raises(ValueError, match="another tiny CLIP"):
        load_weights(model, TINY.weights)
    load_weights(model, TINY.weights, resize=True)
    found, wanted = model.state_dict(), build_tiny_clip(True, TINY).state_dict()
    position = "visual.positional_embedding"
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if name != position)
    # The class token has no place; an average over four patches is that of the one they replace.
    torch.testing.assert_close(found[position][0], wanted[position][0])
    fine_DGG = found[position][1:].T.unflatten(1, (8, 8))
    coarse_DGG = wanted[position][1:].T.unflatten(1, (4, 4))
    averaged_DGG = torch.nn.functional.avg_pool2d(fine_DGG, 2)
    assert (averaged_DGG - coarse_DGG).norm() < 0.2 * coarse_DGG.norm()


def test_weights_are_resized_to_no_change_where_the_grid_is_their_own() -> None:
    model = build_tiny_clip(False)
    load_weights(model, TINY.weights, resize=True)
    wanted = build_tiny_clip(True).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
