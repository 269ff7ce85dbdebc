"""Class names and templates: those of clip-benchmark, and a user's file with its mistakes."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.class_names import Prompts, chosen, packaged, read_file

CLASSES = ["cat", "dog"]
GOOD = {
    "en": {"classnames": {"dog": "dog", "cat": "cat"}, "templates": ["a photo of a {c}.", "a {}"]},
    "de": {"classnames": ["Katze", "Hund"], "templates": ["ein Foto: {c}"]},
}


def written(tree: object, folder: Path) -> Path:
    (folder / "classes.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return folder / "classes.yaml"


def test_names_come_by_folder_or_in_the_folders_order(tmp_path):
    found = read_file(written(GOOD, tmp_path), CLASSES)
    assert found["en"].texts() == ["a photo of a cat.", "a cat", "a photo of a dog.", "a dog"]
    assert found["de"].names == {"cat": "Katze", "dog": "Hund"}


def test_names_may_be_numbers_and_hold_braces(tmp_path):
    tree = {"en": {"classnames": {7: 7, 8: "{c} \\1"}, "templates": ["the digit {c}!"]}}
    assert read_file(written(tree, tmp_path), ["7", "8"])["en"].texts() == ["the digit 7!", "the digit {c} \\1!"]


MISTAKES = {
    # name: tree, what the line says
    "a class is missing": ({"en": GOOD["en"] | {"classnames": {"cat": "cat", "dgo": "dog"}}}, "lacks dog", "dgo"),
    "a list is short": ({"en": GOOD["en"] | {"classnames": ["cat"]}}, "en: classnames has 1 names, but the data has 2"),
    "a template without a hole": ({"en": GOOD["en"] | {"templates": ["a photo"]}}, "en: templates", "'a photo'"),
    "a template with two": ({"en": GOOD["en"] | {"templates": ["{c} {}"]}}, "{c} once"),
    "no template": ({"en": GOOD["en"] | {"templates": []}}, "en: templates"),
    "an empty name": ({"en": GOOD["en"] | {"classnames": [" ", "dog"]}}, "classnames.0"),
    "an unknown key": ({"en": GOOD["en"] | {"template": ["{}"]}}, "template: unknown key", "templates?"),
    "a missing key": ({"en": {"classnames": ["cat", "dog"]}}, "en: templates: is missing"),
    "YAML's no": ({False: GOOD["en"]}, "YAML reads the key false as false", "quotes"),
    "a code that is a number": ({7: GOOD["en"]}, "7 is not a language code", "quotes"),
    "no mapping": ({"en": ["cat", "dog"]}, "en: give classnames and templates"),
    "nothing": ({}, "it has no language"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name, tmp_path):
    tree, *said = MISTAKES[name]
    with pytest.raises(RecipeError) as error:
        read_file(written(tree, tmp_path), CLASSES)
    assert all(word in str(error.value) for word in ("classes.yaml", *said)), str(error.value)


def test_two_codes_of_one_language_are_refused(tmp_path):
    language = "{classnames: {cat: Katze, dog: Hund}, templates: ['{c}']}"
    (tmp_path / "own.yaml").write_text(f"de: {language}\nDE: {language}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"own\.yaml: DE is given twice, also as de; keep one"):
        read_file(tmp_path / "own.yaml", CLASSES)


@pytest.mark.parametrize("word", ["001", "010", "no", "1_000", "0x1f", "12:30", "2024-01-01"])
def test_words_that_yaml_reads_as_something_else_are_refused_with_quotes(word, tmp_path):
    texts = {
        f"en:\n  classnames: {{{word}: cat, dog: dog}}\n  templates: ['a {{c}}']\n": 2,
        f"en:\n  classnames:\n    cat: {word}\n    dog: dog\n  templates: ['a {{c}}']\n": 3,
        f"en:\n  templates: ['a {{c}}']\n  classnames:\n  - dog\n  - {word}\n": 5,
        f"{word}:\n  classnames: [cat, dog]\n  templates: ['a {{c}}']\n": 1,
    }
    for text, line in texts.items():
        (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError, match=rf"own.yaml.* line {line}: YAML reads (the key )?{word} as .* quotes"):
            read_file(tmp_path / "own.yaml", CLASSES)


def test_in_quotes_every_word_is_taken_as_it_is_written(tmp_path):
    text = "'no':\n  classnames: {'001': katt, 2: 'ja', '010': '2024-01-01'}\n  templates: ['a {c}']\n"
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    found = read_file(tmp_path / "own.yaml", ["001", "2", "010"])
    assert found["no"].names == {"001": "katt", "2": "ja", "010": "2024-01-01"}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"--classes .*none\.yaml: no such file"):
        read_file(tmp_path / "none.yaml", CLASSES)


@pytest.fixture(scope="module")
def datasets() -> Path:
    spec = importlib.util.find_spec("clip_benchmark")
    if spec is None or spec.origin is None:
        pytest.skip("clip-benchmark comes with the extras `eval` and `dev` only")
    return Path(spec.origin).parent / "datasets"


def test_imagenets_names_are_clip_benchmarks(datasets):
    from clip_benchmark.datasets.builder import all_imagenet_wordnet_ids as synsets

    found = packaged(synsets)
    full = chosen(found, "all")
    assert list(full) == ["en", "ar", "it", "ja", "zh"]
    for code, file in {"en": "en", "zh": "cn", "ja": "jp"}.items():
        names = json.loads((datasets / f"{file}_classnames.json").read_text(encoding="utf-8"))["imagenet1k"]
        assert list(full[code].names.items()) == list(zip(synsets, names, strict=True))
        assert all(text.count("{c}") == 1 for text in full[code].templates)
    assert full["en"].texts()[0] == full["en"].templates[0].format(c="tench")


def test_babel_imagenet_names_some_classes(datasets):
    synsets = ["n01440764", "n01443537", "n15075141"]  # tench, goldfish, toilet tissue: 0, 1 and 999
    german = packaged(synsets, ["de"])["de"]
    assert "de" not in packaged(synsets)
    numbers, names = json.loads((datasets / "babel_imagenet.json").read_text(encoding="utf-8"))["DE"]
    assert german.names == {
        s: names[numbers.index(n)] for s, n in zip(synsets, (0, 1, 999), strict=True) if n in numbers
    }
    assert german.names["n01443537"] == "Goldfisch"
    assert "{}" in german.templates[0]


def test_imagenet_v2s_folders_are_numbers(datasets):
    found = packaged([str(number) for number in range(1000)])["en"]
    assert (found.names["0"], found.names["999"]) == ("tench", "toilet paper")


@pytest.mark.parametrize("classes", [["cat", "dog"], ["0", "1"], ["n01440764", "n99999999"]])
def test_classes_that_are_not_imagenets_need_a_file(classes):
    with pytest.raises(RecipeError, match=r"is not a synset of ImageNet; name the classes with --classes FILE\.yaml"):
        packaged(classes)


def test_without_clip_benchmark_the_line_says_how_to_get_it(monkeypatch):
    here = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: here(name) if name != "clip_benchmark" else None)
    with pytest.raises(RecipeError, match=r"pip install clip-benchmark"):
        packaged(["n01440764", "n01443537"])


def test_languages_are_chosen_by_name():
    whole = Prompts({"cat": "cat", "dog": "dog"}, ["{}"])
    prompts = {"ar": whole, "en": whole, "de": Prompts({"cat": "Katze"}, ["{}"])}
    assert list(chosen(prompts, "all")) == ["en", "ar", "de"]
    assert list(chosen(prompts, ["ar"])) == ["ar"]
    with pytest.raises(
        RecipeError, match="fr: there are no class names in this language; there are names in ar, en, de"
    ):
        chosen(prompts, ["fr"])
    with pytest.raises(RecipeError, match="de: it names 1 of the data's classes; at least two are needed"):
        chosen(prompts, ["de"])
