"""`mclip-kit prepare` as a user types it: files of one's own, choices, listings, leaks, and what is refused."""

import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mclip_kit.cli import cli
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import shipped_declarations


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def spm(squares: Path) -> str:
    return str(squares / "bitext" / "sentencepiece.bpe.model")


def prepare(*words: str) -> Result:
    return CliRunner().invoke(cli, ["prepare", *words])


def done(*words: str) -> str:
    result = prepare(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str) -> str:
    """The one line with which a command ends."""
    result = prepare(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output.strip().splitlines()[-1]


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path)
    return path


def text(path: str, *lines: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_parallel_files_of_ones_own(spm):
    sides = [f"{code}={text(f'my.{code}', f'{code} one', f'{code} two')}" for code in ("en", "de", "jp")]
    assert "sentence pairs, train: en-de 2, en-ja 2" in done("--bitext", *sides, "--spm", spm)
    source, target = open_bitext("data/en-de-ja/bitext").read("train", "en", "ja")
    assert (list(source.texts), list(target.texts)) == (["en one", "en two"], ["jp one", "jp two"])


def test_shares_are_held_out(spm):
    lines = [f"line {number}" for number in range(400)]
    sides = [f"{code}={text(f'my.{code}', *lines)}" for code in ("en", "de")]
    done("--bitext", *sides, "--spm", spm, "--out", "out", "--set", "splits={valid: 0.1}")
    counts = json.loads(Path("out/manifest.json").read_text())["counts"]["sentence_pairs"]
    assert counts["train"]["en-de"] + counts["valid"]["en-de"] == 400
    assert 20 < counts["valid"]["en-de"] < 70


def test_own_data_has_train_valid_and_test_by_default(spm):
    lines = [f"{word}  {number % 110}" for number in range(600) for word in ["Red" if number % 2 else "red"]]
    sides = [f"{code}={text(f'my.{code}', *(f'{line} {code}' for line in lines))}" for code in ("en", "de")]
    said = done("--bitext", *sides, "--spm", spm, "--out", "out")
    assert "splits drawn by picture and text (valid 0.05, test 0.05): " in said
    assert "leak:" not in said
    counts = json.loads(Path("out/manifest.json").read_text())["counts"]
    assert sum(counts["drawn"].values()) == 600 == counts["rows"]["kept"]
    for split in ("valid", "test"):
        held = {" ".join(line.lower().split()) for line in open_bitext("out/bitext").read(split, "en", "de")[0].texts}
        train = {
            " ".join(line.lower().split()) for line in open_bitext("out/bitext").read("train", "en", "de")[0].texts
        }
        assert held
        assert not held & train
    said = done("--bitext", *sides, "--spm", spm, "--out", "two", "--set", "splits={}")
    assert "sentence pairs, train: en-de 600" in said
    assert "splits drawn" not in said
    said = done("--bitext", *sides, "--spm", spm, "--out", "three", "--set", "splits.test=0.2")
    assert "(valid 0.05, test 0.2)" in said


def test_a_language_that_the_vocabulary_cannot_spell_is_refused_with_the_way_out(spm):
    english = [f"red square {number}" for number in range(50)]
    chinese = ["".join(chr(0x4E00 + 7 * number + place) for place in range(6)) for number in range(50)]
    sides = [f"en={text('my.en', *english)}", f"zh={text('my.zh', *chinese)}"]
    said = refused("--bitext", *sides, "--spm", spm, "--out", "out")
    assert "zh: the vocabulary cannot spell it, " in said
    assert "--spm, or none" in said
    assert not Path("out").exists()
    said = done("--bitext", *sides, "--spm", spm, "--out", "out", "--set", "vocabulary.max_unknown=1")
    assert re.search(r"warning: the vocabulary lacks many characters of .*zh \(\d\d\.\d% <unk>\)", said)
    counts = json.loads(Path("out/manifest.json").read_text())["counts"]["unknown_pieces"]
    ids = np.concatenate(
        [np.asarray(row)[1:-1] for row in open_bitext("out/bitext").read("train", "en", "zh")[1].tokens]
    )
    assert counts["zh"][1] / counts["zh"][0] == pytest.approx((ids == 3).mean(), abs=0.02)
    assert counts["en"][1] <= 0.2 * counts["en"][0]
    assert "<unk>: " not in done(
        "--bitext", *sides, "--out", "trained", "--set", "vocabulary.coverage=1.0", "--set", "splits={}"
    )


def table(ending: str, rows: list[dict[str, str]]) -> str:
    path = f"my.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        text(path, *map(json.dumps, rows))
    else:
        cell = "\t" if ending == "tsv" else ","
        text(path, cell.join(rows[0]), *(cell.join(row.values()) for row in rows))
    return path


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "parquet"])
@pytest.mark.parametrize("names", [("image", "caption", "language"), ("filepath", "title", "lang")])
def test_tables_of_captions(ending, names):
    picture(Path("pictures/a.png"))
    rows = [
        dict(zip(names, cells, strict=True))
        for cells in (("pictures/a.png", "a dog", "en"), ("b.png", "ein Hund", "de"))
    ]
    assert "captions, train: en 1, de 1" in done("--pairs", table(ending, rows), "--out", "out")
    captions = read_captions("out")
    assert list(captions.texts) == ["a dog", "ein Hund"]
    assert captions.picture(0).size == (4, 4)
    assert captions.files[1] == Path("out/pictures/b.png")


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "parquet"])
def test_tables_of_parallel_texts(ending, spm):
    rows = [{"en": "a dog", "de": "ein Hund"}, {"en": "a cat", "de": "eine Katze"}]
    assert "sentence pairs, train: en-de 2" in done("--pairs", table(ending, rows), "--spm", spm, "--out", "out")


def test_a_split_column_is_taken():
    rows = [{"image": f"{s}.jpg", "caption": s, "split": s} for s in ("train", "val", "test")]
    assert "(1 train, 1 valid, 1 test)" in done("--pairs", table("csv", rows), "--out", "out")


def test_shards_are_read_where_they_lie():
    for number in range(2):
        with tarfile.open(f"s-{number:03}.tar", "w") as tar:
            for name, content in (("0.png", picture(Path("p.png"), number).read_bytes()), ("0.txt", b"a square")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    assert "data/s: 2 pictures" in done("--webdataset", "s-{000..001}.tar")
    assert "out: 1 pictures" in done("--webdataset", "s-000.tar", "--source", "../" + Path.cwd().name, "--out", "out")
    captions = read_captions("data/s")
    assert captions.picture(1).getpixel((0, 0)) == (1, 0, 0)
    assert not list(Path("data/s").glob("*.png"))


def test_folders_of_captions_and_of_classes():
    picture(Path("mine/a.png"))
    text("mine/a.txt", "a red square")
    assert "captions, train: en 1" in done("--folder", "mine")
    for name in ("cat/1.png", "dog/1.png"):
        picture(Path("classes") / name)
    assert "data/classes: 2 pictures" in done("--folder", "classes")
    assert sorted(read_captions("data/classes").strata) == ["cat", "dog"]


def test_a_second_time_the_folder_is_kept(spm):
    sides = [f"{code}={text(f'my.{code}', code)}" for code in ("en", "de")]
    first = done("--bitext", *sides, "--spm", spm, "--out", "out")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    again = done("--bitext", *sides, "--spm", spm, "--out", "out")
    for said in (first, again):
        assert "out: 0 pictures\n  sentence pairs, train: en-de 1" in said
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    other = refused("--bitext", *sides, "--spm", spm, "--out", "out", "--set", "cleaning.duplicates=true")
    assert other.startswith("Error: out: prepared from another declaration or source; replace it with --again, or")


def test_a_changed_source_is_not_taken_for_the_prepared_one(spm):
    words = ("--bitext", f"en={text('a.en', 'a dog')}", f"de={text('a.de', 'ein Hund')}", "--spm", spm, "--out", "out")
    done(*words)
    text("a.de", "ein roter Hund")
    assert "a.de: has changed since out was prepared; replace it with --again, or choose" in refused(*words)
    Path("out/pictures").mkdir()
    Path("out/pictures/mine.png").write_bytes(b"kept")
    said = refused(*words, "--again")
    assert said == "Error: out/pictures/mine.png: not written by prepare; move it elsewhere, or choose another --out"
    Path("out/pictures/mine.png").rename("mine.png")
    done(*words, "--again")
    assert Path("out/bitext/train.en-de.de.txt").read_text() == "ein roter Hund\n"
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".out")]
    assert done(*words)  # the same again


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"files": "abc"}'])
def test_a_folder_with_a_damaged_manifest_is_replaced_by_again(spm, manifest):
    words = ("--bitext", f"en={text('a.en', 'a dog')}", f"de={text('a.de', 'ein Hund')}", "--spm", spm, "--out", "out")
    done(*words)
    Path("out/manifest.json").write_text(manifest)
    assert refused(*words)
    done(*words, "--again")
    assert json.loads(Path("out/manifest.json").read_text())["counts"]["sentence_pairs"] == {"train": {"en-de": 1}}


def test_again_replaces_nothing_when_it_fails_and_finishes_what_was_interrupted(spm):
    words = ("--bitext", f"en={text('a.en', 'a dog')}", f"de={text('a.de', 'ein Hund')}", "--spm", spm, "--out", "out")
    done(*words)
    text("a.de", "")
    refused(*words, "--again")
    text("a.de", "ein Hund")
    assert Path("out/bitext/train.en-de.de.txt").read_text() == "ein Hund\n"
    Path("out").rename(".out.old")  # killed between the two renames
    done(*words, "--again")
    assert Path("out/manifest.json").is_file()
    assert not Path(".out.old").exists()


def test_again_removes_no_folder_of_somebody_else(spm):
    words = ("--bitext", f"en={text('a.en', 'a dog')}", f"de={text('a.de', 'ein Hund')}", "--spm", spm, "--out", "out")
    text(".out.old/diary", "mine")
    assert ".out.old: exists and is not a prepared corpus" in refused(*words)
    Path(".out.old").rename("away")
    done(*words)
    Path("away").rename(".out.old")
    assert ".out.old: exists and is not a prepared corpus" in refused(*words, "--again")
    assert Path(".out.old/diary").is_file()


def test_again_goes_on_where_the_removal_of_the_replaced_folder_was_interrupted(spm):
    words = ("--bitext", f"en={text('a.en', 'a dog')}", f"de={text('a.de', 'ein Hund')}", "--spm", spm, "--out", "out")
    done(*words)
    for rest in (["manifest.json"], []):
        Path(".out.old").mkdir()
        for name in rest:
            Path(".out.old", name).write_bytes(Path("out", name).read_bytes())
        done(*words, "--again")
        assert not Path(".out.old").exists()


def test_again_replaces_no_folder_that_it_stands_in_or_reads(spm, monkeypatch):
    words = ("--bitext", f"en={text('a.en', 'a dog')}", f"de={text('a.de', 'ein Hund')}", "--spm", spm, "--out", "out")
    done(*words)
    own = ("--bitext", "en=out/bitext/train.en-de.en.txt", "de=out/bitext/train.en-de.de.txt", "--spm", spm)
    assert "out/bitext/train.en-de.de.txt: a source, in the folder that --again replaces" in refused(
        *own, "--out", "out", "--again"
    )
    monkeypatch.chdir("out")
    said = refused("--bitext", "en=../a.en", "de=../a.de", "--spm", spm, "--out", ".", "--again")
    assert "Error: .: give the folder's name, and from outside of it: --out /" in said
    assert Path("../out/bitext/train.en-de.de.txt").read_text() == "ein Hund\n"


def test_the_languages_of_a_table_with_numbers_may_be_chosen(spm):
    table = text("a.tsv", "id\ten\tde", "1\ta dog\tein Hund")
    assert "train: en-de 1\n" in done("--pairs", table, "--langs", "en,de", "--spm", spm)


def test_the_list_has_every_corpus_and_what_is_prepared(spm):
    sides = [f"{code}={text(f'my.{code}', code)}" for code in ("en", "de")]
    done("--bitext", *sides, "--spm", spm)
    listed = done("--list")
    names = [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")]
    assert names == [*(path.stem for path in shipped_declarations()), "en-de"]
    assert "data/en-de (0 pictures, 0 captions, 1 sentence pairs)" in listed
    assert " ".join(listed.split()).count("not prepared") == len(shipped_declarations())


def test_a_source_may_be_a_zip_and_its_pictures_elsewhere():
    corpus_of("mine", "here", "train", **{"one.png": "a red square"})
    with zipfile.ZipFile("source.zip", "w") as archive:
        archive.write("mine.jsonl", "deep/mine.jsonl")
    Path("mine.jsonl").unlink()
    picture(Path("pictures/deep/one.png"), 9)
    assert "not found" in done("mine.yaml", "--source", "source.zip", "--out", "without")
    assert "not found" not in done("mine.yaml", "--source", "source.zip", "--images", "pictures", "--out", "with")
    assert read_captions("with").picture(0).getpixel((0, 0)) == (9, 0, 0)


def test_some_languages_of_a_table():
    rows = [{"image": "a.jpg", "caption": code, "language": code} for code in ("en", "de", "fr")]
    said = done("--pairs", table("tsv", rows), "--langs", "de,fr", "--out", "out")
    assert "captions, train: de 1, fr 1" in said
    assert list(read_captions("out").languages) == ["de", "fr"]


def test_names_that_are_not_utf8_or_not_printable_are_kept():
    folder = Path(os.fsdecode(b"f\xff"))
    picture(folder / "Screenshot at 1.00\u202fPM.png")
    text(str(folder / "Screenshot at 1.00\u202fPM.txt"), "a red square")
    text(str(folder / "a.en"), "one")
    text(str(folder / "a.de"), "eins")
    assert "a path with a character that a table cannot hold" in refused("--folder", str(folder), "--out", "out")
    assert "en-de 1" in done(
        "--bitext", f"en={folder / 'a.en'}", f"de={folder / 'a.de'}", "--set", "vocabulary.pieces=20", "--out", "out"
    )
    folder.rename("plain")
    assert "captions, train: en 1" in done("--folder", "plain", "--out", "pictures")
    assert read_captions("pictures").names.tolist() == ["Screenshot at 1.00\u202fPM.png"]


def corpus_of(name: str, source: str, split: str, **captions: str) -> None:
    """A declared corpus of pictures from somewhere, and its table."""
    rows = [{"image": image, "caption": caption} for image, caption in captions.items()]
    text(f"{name}.jsonl", *map(json.dumps, rows))
    tree = {
        "about": name,
        "reader": "table",
        "languages": ["en"],
        "licences": [],
        "obtain": "make it",
        "pictures": source,
        "options": {"tables": [{"file": f"{name}.jsonl", "split": split}], "text": "caption", "image": "image"},
    }
    text(f"{name}.yaml", json.dumps(tree))


def test_a_test_set_in_a_training_set_is_named_whichever_is_prepared_first():
    seen = {"COCO_train2014_000000000009.jpg": "a bowl of soup", "COCO_train2014_000000000025.jpg": "a tall giraffe"}
    corpus_of("xtd", "coco", "test", **seen, **{"COCO_val2014_000000000042.jpg": "A DOG on a shoe!"})
    corpus_of("coco", "coco", "train", **{"9.jpg": "food", "25.jpg": "an animal", "77.jpg": "a dog, on a shoe"})
    assert "leak" not in done("xtd.yaml", "--source", ".")
    lines = [
        "leak: data/xtd test: 2 of 3 pictures (by name) are in data/coco train; scores on them are no longer held out",
        "leak: data/xtd test: 1 of 3 texts is in data/coco train; scores on it are no longer held out",
    ]
    said = done("coco.yaml", "--source", ".")
    assert [line.strip() for line in said.splitlines() if "leak" in line] == lines
    said = done("xtd.yaml", "--source", ".")
    assert [line.strip() for line in said.splitlines() if "leak" in line] == lines


def test_a_picture_under_another_name_is_known_by_its_content():
    picture(Path("a/one.png"), 7)
    picture(Path("b/other.png"), 7)
    corpus_of("mine", "here", "test", **{"one.png": "x"})
    corpus_of("theirs", "there", "train", **{"other.png": "y"})
    done("mine.yaml", "--source", ".", "--images", "a")
    assert "1 of 1 picture (by content) is in data/theirs train" in done(
        "theirs.yaml", "--source", ".", "--images", "b"
    )


def test_a_picture_that_is_missing_is_named_with_the_file_that_is_near():
    for number in (1, 2):
        picture(Path(f"imgs/fox-{number}.png"), number)
    rows = [{"image": name, "caption": name} for name in ("fox-1.png", "fox_2.png", "hen.png")]
    said = done("--pairs", table("tsv", rows), "--out", "out")
    assert (
        "such as fox_2.png, of which imgs/fox-2.png is near (mclip-kit data show out --table images): correct" in said
    )


def test_the_near_file_of_a_missing_picture_is_that_of_no_other_picture_and_in_its_folder():
    for folder in ("bar", "box"):
        picture(Path(f"imgs/{folder}/red-1.png"), len(folder))
        picture(Path(f"imgs/{folder}/red-2.png"), len(folder) + ord(folder[1]))
    names = ["bar/red-1.png", "bar/red-2.png", "box/red-1.png", "box/red_2.png"]
    rows = [{"image": name, "caption": name} for name in names]
    assert "such as box/red_2.png, of which imgs/box/red-2.png is near" in done("--pairs", table("tsv", rows))
    rows[3]["image"] = "bar/red-3.png"
    Path("imgs/box/red-2.png").unlink()
    assert "such as bar/red-3.png (mclip-kit data show" in done("--pairs", table("tsv", rows), "--again")


def test_a_caption_never_gets_another_captions_picture():
    for number in (1, 2, 3):
        picture(Path(f"imgs/sku{number}/main.jpg"), number)
    names = [f"imgs/sku{number}/main.jpg" for number in (1, 4, 5)]
    said = done("--pairs", table("tsv", [{"image": name, "caption": name} for name in names]), "--out", "out")
    assert "2 of 3 picture files were not found in " in said
    assert (
        "such as imgs/sku4/main.jpg (mclip-kit data show out --table images): correct the names and prepare with"
        in said
    )
    assert [path.exists() for path in read_captions("out").files] == [True, False, False]
    said = done("--pairs", table("tsv", [{"image": "main.jpg", "caption": "x"}]), "--images", "imgs", "--out", "bare")
    assert "whose name fits several files, such as main.jpg (sku1/main.jpg, sku2/main.jpg, sku3/main.jpg)" in said
    assert "complete that folder, or correct the names, and prepare with --again" in said
    assert "--images" not in said


SIDES = ["--bitext", "en=here.txt", "de=here.txt"]
WRONG = {
    "no source": (
        ["multi30k"],
        "--source DIR is missing; it is the folder with the corpus's files; clone the repository",
    ),
    "no such source": (["multi30k", "--source", "nowhere"], "nowhere: no such folder or file; clone"),
    "an empty source": (["multi30k", "--source", "."], "task1/raw/train.en is missing, plain or compressed; clone"),
    "no such corpus": (["multi31k"], "multi31k: no such file, and none of that name is shipped; did you mean multi30k"),
    "no such language": (["emoji", "--langs", "en,xx"], "no xx in this corpus; there are en, zh"),
    "no first languages": (["emoji", "--langs", "pt"], "choose one of en, zh"),
    "unknown key": (["emoji", "--set", "cleening.ratio=2"], "cleening: unknown key; did you mean cleaning"),
    "wrong value": (
        ["emoji", "--set", "cleaning.ratio=0.5"],
        "cleaning.ratio: Input should be greater than or equal to 1",
    ),
    "two corpora": (["emoji", "coco"], "one corpus at a time, not emoji coco"),
    "one side": (["--bitext", "en=here.txt"], "--bitext needs two languages at least"),
    "no language": (["--bitext", "here.txt", "de=here.txt"], "--bitext here.txt: write LANG=FILE"),
    "no file": (["--bitext", "en=here.txt", "de=gone.txt"], "--bitext de=gone.txt: there is no such file"),
    "a language twice": (["--bitext", "ja=here.txt", "jp=here.txt"], "--bitext jp=here.txt: ja is given twice"),
    "a table of nothing": (["--pairs", "here.tsv"], "here.tsv: columns are a, b; name them image and caption"),
    "no table": (["--pairs", "gone.tsv"], "gone.tsv"),
    "a table of another kind": (
        ["--pairs", "here.txt"],
        "here.txt: its first line has no tab, comma, semicolon or |, so it is no table",
    ),
    "no shards": (["--webdataset", "x-{000..003}.tar"], "x-000.tar"),
    "no pictures": (["--folder", "empty"], "empty: no pictures in it"),
    "two kinds": (["--pairs", "here.tsv", "--folder", "empty"], "one of --bitext, --pairs, --webdataset and --folder"),
    "a folder in the way": (["--bitext", "en=here.txt", "de=here.txt", "--out", "empty"], "empty: exists and is not"),
    "languages said twice": (
        ["--bitext", "en=here.txt", "de=here.txt", "--langs", "en"],
        "--bitext takes its languages from LANG=FILE",
    ),
    "no code": (["--bitext", "e/n=here.txt", "de=here.txt"], "language 'e/n' is not a code such as en or pt_br"),
    "no split": (
        ["--bitext", "en=here.txt", "de=here.txt", "--set", "options.parts.0.split=te/st"],
        "split 'te/st': call it train, valid or test",
    ),
    "no count": (
        ["--bitext", "en=here.txt", "de=here.txt", "--set", "expect.foo=3"],
        "expect.foo: String should match",
    ),
    "another count": (
        ["--bitext", "en=here.txt", "de=here.txt", "--set", "expect={'pairs.train.en-de': 3}"],
        "pairs.train.en-de: 2 found, 3 expected",
    ),
    "too few pieces": (
        ["--bitext", "en=here.txt", "de=here.txt", "--set", "vocabulary.pieces=5"],
        "SentencePiece cannot train 5 pieces",
    ),
    "all too long": (
        [
            *("--bitext", "en=here.txt", "de=here.txt", "--set", "vocabulary.pieces=40"),
            *("--set", "cleaning.max_tokens=3", "--set", "cleaning.too_long=drop"),
        ],
        "cleaning.max_tokens: all sentence pairs of train en-de are longer than 3",
    ),
    "no language in a row": (
        ["--pairs", "null.jsonl"],
        "null.jsonl: column language is empty; fill it, or name another: --set options.language=COLUMN",
    ),
    "a split of another place": (["--pairs", "split.jsonl"], "split.jsonl line 1: split 'train/../x' is none of train"),
    "an empty table": (["--pairs", "empty.tsv"], "empty.tsv: is empty; give a table"),
    "no zip": (["multi30k", "--source", "here.txt"], "here.txt: not a readable zip"),
    "no vocabulary's file": (
        ["--bitext", "en=here.txt", "de=here.txt", "--spm", "gone.model"],
        "gone.model: No such file or directory",
    ),
    "no file for a language": (
        [*SIDES, "--set", "languages=[en, de, fr]"],
        "options.parts: texts names no file for fr",
    ),
    "one file for all": (
        [*SIDES, "--set", "options.parts.0.texts=here.txt"],
        "texts has neither {language} nor {pair}",
    ),
    "more than all": ([*SIDES, "--set", "splits={valid: 0.9, test: 0.9}"], "splits: the shares are more than 1"),
    "all left out": (
        [*SIDES, "--set", "cleaning.characters=[100, 200]"],
        "here.txt: all of it was left out (2 sentence pairs with a side of too few characters); change `cleaning`",
    ),
    "most before least": ([*SIDES, "--set", "cleaning.characters=[10, 2]"], "cleaning.characters: the least comes"),
    "far too many pieces": (
        [*SIDES, "--set", "vocabulary.pieces=2000000000"],
        "vocabulary.pieces: Input should be less than or equal to 1048576",
    ),
    "long lines only": (["--bitext", "en=long.txt", "de=long.txt"], "all lines are too long to train SentencePiece on"),
    "no parallel files": (["--bitext"], "--bitext needs two languages at least"),
    "a source besides": ([*SIDES, "--source", "empty"], "--bitext already gives the files"),
    "a corpus besides": (["emoji", "--pairs", "here.tsv"], "give --pairs or a corpus, not both; leave emoji out"),
    "no name of shards": (["--webdataset", ""], "names no shards"),
    "Indonesian or numbers": (["--pairs", "id.tsv"], "id.tsv: is column id a language? Name the language columns"),
    "a link to nowhere": ([*SIDES, "--out", "broken"], "broken: exists and is not a prepared corpus"),
    "no vocabulary": (["--bitext", "en=here.txt", "de=here.txt", "--spm", "here.txt"], "here.txt: not a readable Sent"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_ends_in_one_line(name):
    words, said = WRONG[name]
    text("here.txt", "one line", "another")
    text("here.tsv", "a\tb", "1\t2")
    text("null.jsonl", json.dumps({"image": "a.jpg", "caption": "a dog", "language": None}))
    text("split.jsonl", json.dumps({"image": "a.jpg", "caption": "a dog", "split": "train/../x"}))
    text("empty.tsv")
    text("id.tsv", "id\ten\tde", "1\ta dog\tein Hund")
    text("long.txt", "x" * 5000)
    Path("broken").symlink_to("gone")
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    assert said in refused(*words)
    assert [path for path in sorted(Path().rglob("*")) if path != Path("data")] == before
