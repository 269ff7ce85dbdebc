"""Each declaration reads a miniature of the layout that its corpus is published in."""

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mclip_kit.data.corpora import Row, declaration, find_reader
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError

COCO = "COCO_train2014_000000061844", "COCO_val2014_000000391895", "COCO_val2014_000000000042"


def put(path: Path, content: Any) -> None:
    """A file of text, or of JSON; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def rows(name: str, folder: Path, languages: list[str] | None = None) -> list[Row]:
    """What a declaration's reader finds."""
    corpus = declaration(name)
    corpus = corpus.with_languages(languages) if languages else corpus
    return list(find_reader(corpus)(corpus, Source(folder)).rows)


def karpathy(path: Path, *images: tuple[str, str]) -> None:
    """Karpathy's file, of (picture, split), each with one caption."""
    made = [{"filename": n, "split": s, "sentences": [{"raw": f"{n} .", "tokens": []}], "imgid": 0} for n, s in images]
    put(path, {"images": made, "dataset": "any"})


def test_flickr30k(tmp_path):
    karpathy(tmp_path / "caption_datasets/dataset_flickr30k.json", ("1.jpg", "train"), ("2.jpg", "val"))
    assert rows("flickr30k", tmp_path) == [
        Row("train", [("en", "1.jpg .")], image="1.jpg"),
        Row("valid", [("en", "2.jpg .")], image="2.jpg"),
    ]


def test_flickr30k_cn(tmp_path):
    for split, tag, number in (("train", "zhb", 1), ("val", "zhb", 2), ("test", "zhm", 3)):
        name = f"flickr30k{tag}boson{split}"
        tagged = ":n" if tag == "zhm" else ""
        put(tmp_path / f"flickr30k-cn/{name}/ImageSets/{name}.txt", f"{number}\n")
        captions = "".join(f"{number}#{tag}#{n} 第{tagged} {n}{tagged}\n" for n in range(2))
        put(tmp_path / f"flickr30k-cn/{name}/TextData/seg.{name}.caption.txt", captions)
    assert [row.texts for row in rows("flickr30k_cn", tmp_path)] == [[("zh", "第0")], [("zh", "第1")]] * 3
    put(tmp_path / "results_20130124.token", "".join(f"{i}.jpg#{n}\tthe {n} .\n" for i in (3, 1) for n in range(2)))
    assert rows("flickr30k_cn", tmp_path) == [
        *(Row("train", [("en", f"the {n} ."), ("zh", f"第{n}")], image="1.jpg", parallel=True) for n in range(2)),
        *(Row("valid", [("zh", f"第{n}")], image="2", parallel=True) for n in range(2)),
        *(Row("test", [("en", f"the {n} ."), ("zh", f"第{n}")], image="3.jpg", parallel=True) for n in range(2)),
    ]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three pictures of COCO, with the files of STAIR and COCO-CN."""
    splits = ("train", "test", "restval")
    karpathy(tmp_path / "dataset_coco.json", *((f"{name}.jpg", s) for name, s in zip(COCO, splits, strict=True)))
    for part, number in (("train", 61844), ("val", 391895)):
        stair = {"images": [], "annotations": [{"id": 1, "image_id": number, "caption": "犬"}]}
        put(tmp_path / f"stair_captions_v1.2_{part}.json", stair)
        put(tmp_path / f"stair_captions_v1.2_{part}_tokenized.json", stair)
    cn = tmp_path / "coco-cn-version1805v1.1"
    put(cn / "imageid.human-written-caption.txt", f"{COCO[0]}#0\t一只狗\n{COCO[2]}#0\t猫\n{COCO[2]}#1\t两只猫\n")
    put(cn / "imageid.human-written-caption.bosonseg.txt", "not read")
    put(cn / "imageid.manually-translated-caption.txt", f"{COCO[2]}#zhm#0 not read\n")
    for part, name in (("train", COCO[1]), ("val", COCO[2]), ("test", COCO[0])):
        put(cn / f"coco-cn_{part}.txt", name)
    return tmp_path


def test_coco(coco):
    names = [f"{name}.jpg" for name in COCO]
    assert rows("coco", coco) == [
        Row("train", [("en", f"{names[0]} ."), ("ja", "犬"), ("zh", "一只狗")], image=names[0]),
        Row("test", [("en", f"{names[1]} ."), ("ja", "犬")], image=names[1]),
        Row("train", [("en", f"{names[2]} ."), ("zh", "猫"), ("zh", "两只猫")], image=names[2]),
    ]


def test_coco_cn(coco):
    names = [f"{name}.jpg" for name in COCO]
    assert rows("coco_cn", coco) == [
        Row("train", [("en", f"{names[1]} .")], image=names[1]),
        Row("valid", [("en", f"{names[2]} ."), ("zh", "猫"), ("zh", "两只猫")], image=names[2]),
        Row("test", [("en", f"{names[0]} ."), ("zh", "一只狗")], image=names[0]),
    ]
    (coco / "dataset_coco.json").unlink()
    assert [(row.split, len(row.texts), row.image) for row in rows("coco_cn", coco)] == [
        ("train", 0, COCO[1]),
        ("valid", 2, COCO[2]),
        ("test", 1, COCO[0]),
    ]


def test_xtd10(tmp_path):
    places = {"XTD10": "es it ko pl ru tr zh", "MIC": "de en fr", "STAIR": "jp"}
    put(tmp_path / "XTD10/test_image_names.txt", "".join(f"{COCO[n % 2]}.jpg\n" for n in range(1000)))
    for folder, languages in places.items():
        for language in languages.split():
            lines = "\n".join(f"{language} {n}" for n in range(1000))
            put(tmp_path / f"{folder}/test_1kcaptions_{language}.txt", lines + "\n" * (language in ("en", "jp")))
    found = rows("xtd10", tmp_path)
    assert len(found) == 1000
    assert (found[999].split, found[999].image, found[999].parallel) == ("test", f"{COCO[1]}.jpg", False)
    assert dict(found[999].texts) == {
        ("ja" if code == "jp" else code): f"{code} 999" for codes in places.values() for code in codes.split()
    }
    put(tmp_path / "MIC/test_1kcaptions_en.txt", "en\n" * 999)
    with pytest.raises(DataError, match="the numbers must be equal"):
        rows("xtd10", tmp_path, ["en", "de"])


def test_crossmodal3600(tmp_path):
    corpus = declaration("crossmodal3600")
    captions = {code: {"caption": [f"{code} 1", f"{code} 2"], "caption/tokenized": ["x"]} for code in corpus.languages}
    line = json.dumps({"image/key": "000411001ff7dd4f", "image/locale": "de"} | captions)
    with zipfile.ZipFile(tmp_path / "captions.zip", "w") as archive:
        archive.writestr("captions.jsonl", line + "\n")
    [row] = rows("crossmodal3600", tmp_path)
    assert (row.split, row.image, row.parallel) == ("test", "000411001ff7dd4f", False)
    assert row.texts == [(code, f"{code} {n}") for code in corpus.languages for n in (1, 2)]
    assert len(corpus.languages) == 36


def test_cc3m(tmp_path):
    put(tmp_path / "Train_GCC-training.tsv", 'a "very typical\thttp://x.org/a.jpg?imgmax=800\n')
    expected = [Row("train", [("en", 'a "very typical')], image="http://x.org/a.jpg?imgmax=800")]
    assert rows("cc3m", tmp_path) == expected
    put(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", "person\thttp://x.org/b\n")
    assert rows("cc3m", tmp_path) == [*expected, Row("valid", [("en", "person")], image="http://x.org/b")]


def test_translation2019zh(tmp_path):
    pair = json.dumps({"english": "a tax", "chinese": "税收"})
    with zipfile.ZipFile(tmp_path / "translation2019zh.zip", "w") as archive:
        for split in ("train", "valid"):
            archive.writestr(f"translation2019zh_{split}.json", f"{pair}\n{pair}\n")
    texts = [("en", "a tax"), ("zh", "税收")]
    assert rows("translation2019zh", tmp_path) == [
        Row(split, texts, parallel=True) for split in ("train", "valid") for _ in range(2)
    ]


@pytest.mark.parametrize("name", ["tsl2019.jsonl", "tsl2019/part.json", "tsl2019.json.gz"])
def test_tsl2019(tmp_path, name):
    path = tmp_path / name
    put(path, {"english": "a tax", "chinese": "税收"})
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert rows("tsl2019", tmp_path) == [Row("", [("en", "a tax"), ("zh", "税收")], parallel=True)]


def test_opus(tmp_path):
    for pair, other in (("de-en", "de"), ("en-zh_cn", "zh_cn")):
        with zipfile.ZipFile(tmp_path / f"{pair}.txt.zip", "w") as archive:
            for language in ("en", other):
                archive.writestr(f"OpenSubtitles.{pair}.{language}", f"{language} 1\n{language}\u20282\n")
            archive.writestr(f"OpenSubtitles.{pair}.ids", "x\ty\t1\t1\n")
            archive.writestr("README", "about")
    assert rows("opus", tmp_path) == [
        Row("", [("en", f"en{mark}"), (code, f"{other}{mark}")], parallel=True)
        for code, other in (("de", "de"), ("zh", "zh_cn"))
        for mark in (" 1", "\u20282")
    ]


def test_mclip_translations(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    made = [
        {"caption": "a dog", "caption_multi": "en hund", "multi_language_code": "sv", "url": "http://x.org/a"},
        {"caption": "a cat", "caption_multi": None, "multi_language_code": "de", "url": "http://x.org/b"},
        {"caption": "a fox", "caption_multi": "狐狸", "multi_language_code": "zh", "url": "http://x.org/c"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(made), tmp_path / "cc12m_7m_subset_translated.parquet")
    assert rows("mclip_translations", tmp_path) == [
        Row("", [("en", "a dog"), ("sv", "en hund")], parallel=True),
        Row("", [("en", "a cat")], parallel=True),
        Row("", [("en", "a fox"), ("zh", "狐狸")], parallel=True),
    ]
    assert len(rows("mclip_translations", tmp_path, ["en", "sv"])) == 1


WIT = """language page_url image_url page_title section_title hierarchical_section_title caption_reference_description
caption_attribution_description caption_alt_text_description mime_type original_height original_width is_main_image
attribution_passes_lang_id page_changed_recently context_page_description context_section_description"""


def test_wit(tmp_path):
    def line(language: str, caption: str) -> str:
        cells = dict.fromkeys(WIT.split(), "") | {"language": language, "caption_reference_description": caption}
        return "\t".join((cells | {"image_url": f"https://x.org/{language}.jpg"}).values())

    shards = {"train.all-00000-of-00010": "de", "train.all-00009-of-00010": "iw", "val.all-00000-of-00005": "en"}
    for shard, language in shards.items():
        lines = [
            "\t".join(WIT.split()),
            line(language, f'"{language} ""one""\ntwo"'),
            line(language, ""),
            line("tlh", "x"),
        ]
        (tmp_path / f"wit_v1.{shard}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert rows("wit", tmp_path) == [
        Row("train", [("de", 'de "one"\ntwo')], image="https://x.org/de.jpg"),
        Row("train", [("he", 'iw "one"\ntwo')], image="https://x.org/iw.jpg"),
        Row("valid", [("en", 'en "one"\ntwo')], image="https://x.org/en.jpg"),
    ]
    for path in tmp_path.iterdir():
        path.unlink()
    put(tmp_path / "wit_v1.train.all-1percent_sample.tsv", "\t".join(WIT.split()) + "\n" + line("en", "x"))
    assert Counter(row.split for row in rows("wit", tmp_path)) == {"train": 1}


CAPTIONS = ["flickr30k", "flickr30k_cn", "coco", "coco_cn", "xtd10", "crossmodal3600", "cc3m", "wit"]
TEXTS = ["translation2019zh", "tsl2019", "opus", "mclip_translations"]


@pytest.mark.parametrize("name", [*CAPTIONS, *TEXTS])
def test_an_empty_folder_says_how_to_get_the_corpus(tmp_path, name):
    corpus = declaration(name)
    with pytest.raises(DataError) as error:
        find_reader(corpus)(corpus, Source(tmp_path, obtain=corpus.obtain))
    assert str(error.value).endswith(corpus.obtain)
    assert "\n" not in str(error.value)
