"""Laws of text templates: each dataset has its own, and a user can give others."""

from pathlib import Path

import pytest

from stop_core.datasets import DATASETS
from stop_core.settings.class_templates import (
    TEMPLATES,
    check_templates,
    class_sentences,
    find_templates,
)


@pytest.mark.parametrize("name", [*DATASETS, "hmdb51", "ucf101", "ssv2", "kinetics", "unlisted"])
def test_each_dataset_has_a_default_sentence_and_an_ensemble(name: str) -> None:
    (one,) = find_templates(("default",), name)
    several = find_templates(("ensemble",), name)
    assert one.count("{}") == 1
    assert len(several) == len(set(several)) > 1
    assert all(sentence.count("{}") == 1 for sentence in several)


def test_words_of_a_class_replace_the_braces() -> None:
    templates = find_templates(("default",), "hmdb51")
    found = class_sentences(templates, ["ride bike", "wave {x}"])
    assert found == [
        ["a video of a person doing ride bike."],
        ["a video of a person doing wave {x}."],
    ]
    assert class_sentences(["{} {0}", "a {}"], ["b"]) == [["b {0}", "a b"]]


def test_name_of_a_set_is_not_a_sentence() -> None:
    with pytest.raises(ValueError, match="'default' is not a sentence"):
        class_sentences(["default"], ["wave"])


def test_given_sentences_are_used_for_every_dataset() -> None:
    given = ("a {}", "the {} of default")
    assert find_templates(given, "hmdb51") == find_templates(given, "unlisted") == given


def test_file_with_a_list_of_sentences_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- a film of {}.\n- '{} again'\n")
    assert find_templates((str(path),), "hmdb51") == ("a film of {}.", "{} again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, 'b", "is not YAML"),
        ("[]", "at least one sentence"),
        ("hmdb51: a film of {}", "a list of at least one sentence"),
        ("- a film of cats", "'a film of cats'"),
        ("- 3", "3 is not a sentence"),
    ],
)
def test_file_without_sentences_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        find_templates((str(path),), "hmdb51")
    assert str(path) in str(caught.value)


def test_missing_file_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.yaml"):
        find_templates((str(tmp_path / "none.yaml"),), "hmdb51")


def test_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'ensembel' .*hmdb51, only default, ensemble") as caught:
        find_templates(("ensembel",), "hmdb51")
    assert str(TEMPLATES) in str(caught.value)


def test_templates_are_sentences_or_the_name_of_a_set_or_file() -> None:
    for good in (("a {}",), ("a {}", "{} b"), ("ensemble",), ("mine.yml",)):
        check_templates(good)
    for bad in ((), ("",), (" ",), ("a {}", " "), ("a {}", "b"), ("a", "b {}"), (3,)):
        with pytest.raises(ValueError, match=r"^templates"):
            check_templates(bad)


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_only_a_file_of_yaml_is_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text("['{}']")
    assert find_templates((str(path),), "hmdb51") == ("{}",)
    path = path.rename(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match=r"no set '.*mine\.txt'"):
        find_templates((str(path),), "hmdb51")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "must contain the sets"), ("hmdb51: 3", "only none"), ("x: {a: []}", "only none")],
)
def test_damaged_file_of_sets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(text)
    monkeypatch.setattr("stop_core.settings.class_templates.TEMPLATES", path)
    with pytest.raises(ValueError, match=message) as caught:
        find_templates(("default",), "hmdb51")
    assert str(path) in str(caught.value)
