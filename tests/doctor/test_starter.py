"""`mclip-kit init`: what it finds in a folder, the recipe that it writes, and the commands that it prints."""

import json
import os
import shlex
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from mclip_kit.cli import cli
from mclip_kit.config.recipe import load
from mclip_kit.config.yaml import shipped
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.doctor.discover import discover
from mclip_kit.doctor.found import Data
from mclip_kit.doctor.starter import Starter, batch_size
from mclip_kit.models.clip import build_clip
from mclip_kit.models.text_encoder import new_encoder
from tests import tiny

Type = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True)
    names = [f"{number:03}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((16, 16, 3), 2 * number, np.uint8)).save(folder / name)
    return names


def table(folder: Path, count: int = 60) -> Path:
    names = pictures(folder / "photos", count)
    rows = [f"{name}\tred square left, shade {n}\tQuadrat rot links, Ton {n}" for n, name in enumerate(names)]
    path = folder / "captions.tsv"
    path.write_text("\n".join(["image\tcaption\tcaption_de", *rows]) + "\n", encoding="utf-8")
    return path


def parallel(folder: Path, *languages: str, name: str = "train") -> None:
    folder.mkdir(exist_ok=True)
    for language in languages:
        lines = "".join(f"carré left, shade {n}\n" for n in range(80))
        (folder / f"{name}.{language}").write_text(lines, encoding="utf-8")


def test_every_command_that_it_prints_works(here: Path, squares: Path) -> None:
    table(here)
    parallel(here / "text", "en", "fr")
    build_clip(tiny.TEACHER, "random").save(here / "models" / "clip")
    encoder = new_encoder(1, 16, 2, 32, 0.1, 32, XlmrTokenizer(squares / "bitext"))
    encoder.save(here / "models" / "encoder")
    said = typed("init")
    assert said.exit_code == 0, said.output
    assert "captions.tsv: a table (en, de)" in said.output
    assert "CLIP: local-dir:models/clip" in said.output
    assert "encoder: hf:models/encoder" in said.output
    commands = [shlex.split(line) for line in said.output.splitlines() if line.startswith("  mclip-kit ")]
    assert [words[1] for words in commands] == ["prepare", "prepare", "train", "eval"]
    for words in commands:
        short = ["--set", "stages.0.epochs=2", "--set", "stages.1.epochs=2"] if words[1] == "train" else []
        done = typed(*words[1:], *short)
        assert done.exit_code == 0, done.output
    results = json.loads((here / "runs/recipe/model/../eval/captions.test/results.json").read_text(encoding="utf-8"))
    assert {row["language"] for row in results["results"]} == {"en", "de"}
    # once prepared, the same folder gives the same recipe and no command to prepare
    again = typed("init", "--out", "second.yaml")
    assert (here / "second.yaml").read_text() == (here / "recipe.yaml").read_text()
    assert "mclip-kit prepare" not in again.output


@pytest.mark.parametrize(
    ("captions", "bitext", "clip", "encoder"),
    product((None, ["en"], ["de", "fr"], ["en", "de"]), (None, ["en", "zh"]), (None, "local-dir:c"), (None, "hf:'#")),
)
def test_every_recipe_is_one(captions, bitext, clip, encoder, here):
    if not captions and not bitext:
        return
    data = {
        kind: Data("", kind, languages, f"data/{kind}: #{{", rows=1000)
        for kind, languages in {"captions": captions, "bitext": bitext}.items()
        if languages
    }
    text = Starter(data.get("captions"), data.get("bitext"), clip, encoder).recipe()
    (here / "r.yaml").write_text(text, encoding="utf-8")
    recipe = load("r.yaml")
    assert recipe.data.captions == (data["captions"].folder if captions else None)
    assert [stage.name for stage in recipe.stages] == ["align"] * bool(bitext) + ["contrast"] * bool(captions)
    assert recipe.encoder == (encoder or "hf:xlm-roberta-base")
    if captions and "en" not in captions:
        assert list(recipe.stages[-1].edges) == ["image-student_text"]
    assert all(line.split("#")[0].strip() or line.strip().startswith("#") for line in text.splitlines() if line)


def test_its_figures_are_the_quickstart_s() -> None:
    """They were chosen on validation there; only what depends on the data differs."""
    data = [Data("", kind, ["en", "de"], kind, rows=10**6) for kind in ("captions", "bitext")]
    ours = yaml.safe_load(Starter(*data, clip=None, encoder=None).recipe())
    shipped_one = yaml.safe_load((shipped("recipes") / "quickstart_trikd.yaml").read_text(encoding="utf-8"))
    assert ours["projector"] == shipped_one["projector"]
    for stage, known in zip(ours["stages"], shipped_one["stages"], strict=True):
        assert {**stage, "name": "", "languages": ""} == {**known, "name": "", "languages": ""}


def test_what_it_finds(here: Path, squares: Path) -> None:
    pictures(here / "photos" / "a", 3)
    (here / "photos" / "a" / "000.txt").write_text("one\n")
    (here / "photos" / "a" / "000.de.txt").write_text("eins\n")
    pictures(here / "bare", 2)
    parallel(here, "en", "pt-BR", name="news")
    parallel(here / "more", "de", "fr")
    (here / "unclear.csv").write_text("a,b\n1,2\n")
    (here / "shards").mkdir()
    (here / "squares").symlink_to(squares)
    (here / "runs").mkdir()
    table(here / "runs" / "x", 2)
    bert = here / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    t5 = here / "t5"
    t5.mkdir()
    (t5 / "config.json").write_text('{"model_type": "t5"}')
    (here / "student").mkdir()
    for name in ("projector.safetensors", "config.json"):
        (here / "student" / name).write_text("{}")
    found = discover(Path("."))
    assert [(data.kind, data.languages, data.words) for data in found.data] == [
        ("bitext", ["en", "pt_br"], ("--bitext", "en=news.en", "pt_br=news.pt-BR", "--out", "data/en-pt_br")),
        ("bitext", ["de", "fr"], ("--bitext", "de=more/train.de", "fr=more/train.fr", "--out", "data/de-fr")),
        ("captions", ["en", "de"], ("--folder", "photos", "--out", "data/photos")),
    ]
    assert found.encoders == ["hf:bert", "hf:student/encoder"]
    assert found.clips == ["local-dir:student/clip"]
    others = "\n".join(found.others)
    assert "unclear.csv" in others
    assert "bare: 2 pictures without captions" in others
    assert "t5: a model of kind t5" in others
    said = typed("init").output
    assert "more/train.de, more/train.fr: parallel text: not in the recipe (the CLIP reads English" in said


def test_a_folder_s_oddities_stop_nothing(here: Path) -> None:
    parallel(here, "en", "de")
    parallel(here, "en", "de", name="a\nb")
    parallel(here, "en", "de", name="caf\udce9")
    parallel(here / "caf\udce9 #", "en", "fr")
    parallel(here / "web", "en", "ja", "jp", name="{{x}} #")
    (here / "web" / "manifest.json").write_text('{"name": "of another program"}')
    (here / "gone.csv").symlink_to("nowhere.csv")
    os.mkfifo(here / "pipe.csv")
    (here / "loop").symlink_to(here)
    (here / "package.json").write_text('{"name": "x"}')
    for name, counts in {"one": 3, "two": {"captions": {"train": {"en": "x"}}, "sentence_pairs": {}}}.items():
        (here / name).mkdir()
        (here / name / "manifest.json").write_text(json.dumps({"counts": counts}))
    said = typed("init")
    assert said.exit_code == 0, said.output
    load("recipe.yaml")
    lines = said.output.splitlines()
    for line in (
        "train.en, train.de: parallel text (en, de)",
        "gone.csv and 1 more: links to nothing, or no files; they are not read",
        "loop: links to folders, which are not looked into; name such a folder to look at it",
        "web/{{x}} #.jp: in the same language as web/{{x}} #.ja; not in the recipe",
        "a\\nb.en, a\\nb.de: parallel text: its path has control characters or is not UTF-8; rename it",
        "one/manifest.json: damaged ('int' object is not subscriptable); prepare it with --again",
    ):
        assert line in lines
    assert "two/manifest.json: damaged" in said.output
    assert "caf\\udce9.en" in said.output
    assert "caf\\udce9 #/train.en" in said.output


def test_a_folder_that_cannot_be_read_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(here, "en", "de")
    (here / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "closed: cannot be read (Permission denied); make it readable\n" in typed("init").output


def test_held_out_splits_are_not_trained_on(here: Path) -> None:
    for shade, split in enumerate(("test", "train", "val"), 1):
        for name in pictures(here / split, 2):
            colour = (80 * shade, 0, int(name[:3]))
            Image.new("RGB", (16, 16), colour).save(here / split / name)
            (here / split / name).with_suffix(".txt").write_text(f"{split} {name}\n")
    for split in ("dev", "train"):
        parallel(here, "en", "de", name=split)
        (here / f"captions_{split}.csv").write_text("image,caption\n000.png,red\n")
    found = discover(Path("."))
    assert [data.words[1] for data in found.data] == [
        "en=train.en",
        ".",
        "captions_train.csv",
        "en=dev.en",
        "captions_dev.csv",
    ]
    prepared = typed("prepare", "--folder", ".", "--out", "data/all").output
    assert "captions, test: en 2\n" in prepared
    assert "captions, train: en 2\n" in prepared


def test_the_largest_table_comes_first(here: Path) -> None:
    table = pa.table({"image": [f"{row}.png" for row in range(9)], "caption": ["red"] * 9})
    pq.write_table(table, here / "large.parquet")
    (here / "small.csv").write_text("image,caption\n000.png,red\n")
    assert [data.words[1] for data in discover(Path(".")).data] == ["large.parquet", "small.csv"]


def test_folders_that_are_too_deep_are_said(here: Path) -> None:
    deep = here / "a" / "b" / "c" / "d"
    (deep / "e").mkdir(parents=True)
    parallel(deep, "en", "de")
    said = typed("init", "--out=-r.yaml").output
    assert "a/b/c/d/train.en, a/b/c/d/train.de: parallel text" in said
    assert "a/b/c/d/e: deeper than 4 folders, which is not looked into; name such a folder\n" in said
    assert "  mclip-kit train ./-r.yaml\n" in said


def test_coco_s_layout(here: Path) -> None:
    names = pictures(here / "val2017", 5)
    (here / "annotations").mkdir()
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    for kind, text in {"captions": {"caption": "a cat"}, "instances": {"bbox": [1, 2, 3, 4]}}.items():
        rows = [{"id": number, "image_id": number, **text} for number in range(5)]
        content = json.dumps({"images": images, "annotations": rows}, indent=4 if kind == "instances" else None)
        (here / "annotations" / f"{kind}_val2017.json").write_text(content)
    said = typed("init")
    assert "annotations/captions_val2017.json: a table (en)\n" in said.output
    assert "annotations/instances_val2017.json: COCO's boxes or keypoints, without captions;" in said.output
    (command,) = [shlex.split(line) for line in said.output.splitlines() if line.startswith("  mclip-kit prepare")]
    assert command[4:6] == ["--images", "val2017"]
    prepared = typed(*command[1:])
    assert "data/captions_val2017: 5 pictures" in prepared.output
    assert "not found" not in prepared.output


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("captions.txt", ["image,caption", "000.png,red", "001.png,blue"]),
        ("a.token", ["000.png#0\tred", "001.png#0\tblue"]),
    ],
)
def test_tables_of_flickr_are_found(here: Path, name: str, lines: list[str]) -> None:
    pictures(here / "Images", 2)
    (here / name).write_text("\n".join(lines) + "\n")
    (here / "notes.txt").write_text("an image, and what else\n")
    (only,) = discover(Path(".")).data
    assert only.words[:2] == ("--pairs", name)
    assert "captions, train: en 2\n" in typed("prepare", *only.words, "--set", "splits={}").output


def test_a_json_table_among_its_pictures(here: Path) -> None:
    names = pictures(here / "photos", 3)
    rows = [{"image": name, "caption": f"a cat, {name}"} for name in names]
    (here / "photos" / "captions.json").write_text(json.dumps(rows))
    (here / "photos" / "000.json").write_text('{"caption": "of the picture of its name"}')
    assert {data.words[:2] for data in discover(Path(".")).data} == {
        ("--folder", "photos"),
        ("--pairs", "photos/captions.json"),
    }


def test_of_many_lines_the_first_are_shown(here: Path) -> None:
    for number in range(30):
        (here / f"{number:02}.csv").write_text("a,b\n1,2\n")
    said = typed("init").output
    assert "19.csv" in said
    assert "20.csv" not in said
    assert said.endswith("; and 10 more\n")


def test_a_prepared_folder_needs_no_command(squares: Path, here: Path) -> None:
    said = typed("init", squares).output
    assert f"{squares}: prepared (en, de, fr)" in said
    recipe = load("recipe.yaml")
    assert recipe.data.captions == str(squares)
    assert list(recipe.data.bitexts) == [str(squares / "bitext")]
    assert "mclip-kit prepare" not in said


def test_nothing_to_train_on_is_one_line(here: Path) -> None:
    pictures(here / "photos", 2)
    said = typed("init")
    assert said.exit_code == 2
    assert said.output.startswith("Error: .: nothing to train on: ")
    assert "photos: 2 pictures without captions" in said.output
    assert said.output.count("\n") == 1
    assert not (here / "recipe.yaml").exists()


def test_nothing_is_replaced(here: Path) -> None:
    table(here, 4)
    (here / "recipe.yaml").write_text("mine")
    said = typed("init")
    assert (said.exit_code, (here / "recipe.yaml").read_text()) == (2, "mine")
    assert "--out" in said.output
    assert typed("init", "nowhere").exit_code == 2
    assert "captions.tsv: not a folder;" in typed("init", "captions.tsv", "--out", "other.yaml").output


@pytest.mark.parametrize(("rows", "size"), [(0, 256), (1, 8), (64, 8), (1000, 64), (4096, 256), (10**9, 256)])
def test_a_batch_leaves_steps_in_an_epoch(rows: int, size: int) -> None:
    assert batch_size(rows) == size


def test_a_shipped_recipe_is_shown_with_its_comments() -> None:
    text = (shipped("recipes") / "altclip_full.yaml").read_text(encoding="utf-8")
    assert typed("recipes", "--show", "altclip_full").output == text
    wrong = typed("recipes", "--show", "altclip")
    assert wrong.exit_code == 2
    assert "altclip_" in wrong.output
