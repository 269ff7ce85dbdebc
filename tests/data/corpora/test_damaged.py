"""Damaged sources: whatever is in the files, a corpus is prepared whole or refused in one line, and nothing is left."""

import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Corpus
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import adhoc
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.errors import MclipError

EXAMPLES = 60  # each time the same; with more and at random, thousands have been tried
thorough = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
EN = ["A dog runs.", "Two cats, asleep", "the red square", "a man on a horse"]
DE = ["Ein Hund läuft.", "Zwei Katzen, schlafend", "das rote Quadrat", "ein Mann auf einem Pferd"]
PICTURES = [f"COCO_train2014_{n:012}.jpg" for n in range(1, 5)]
Files = dict[str, bytes]
Case = tuple[dict[str, Any], Files, Callable[[Files], Files]]
"""What a declaration says besides, the files, and how they are packed."""


def joined(rows: list[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def as_it_is(files: Files) -> Files:
    return files


def compressed(files: Files) -> Files:
    """The first with gzip, the others with xz."""
    packed = {}
    for number, (name, content) in enumerate(files.items()):
        ending, press = (".xz", lzma.compress) if number else (".gz", gzip_again)
        packed[name + ending] = press(content)
    return packed


def gzip_again(content: bytes) -> bytes:
    """The same bytes at any time."""
    return gzip.compress(content, mtime=0)


def zipped(files: Files) -> Files:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            name = name.encode(errors="replace").decode()
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return {"all.zip": buffer.getvalue()}


def tarred(files: Files) -> Files:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return {"00000.tar": buffer.getvalue()}


def parquet(files: Files) -> Files:
    """Each line of JSON as a row; what JSON cannot say stays as it is."""
    import pyarrow
    from pyarrow import parquet

    packed = {}
    for name, content in files.items():
        buffer = io.BytesIO()
        try:
            table = pyarrow.Table.from_pylist([json.loads(line) for line in content.splitlines()])
            parquet.write_table(table, buffer)
        except Exception:  # this one is no table
            buffer.write(content)
        packed[name] = buffer.getvalue()
    return packed


def lines(**part: Any) -> dict[str, Any]:
    return {"reader": "lines", "options": {"parts": [{"split": "train", "texts": "train.{language}", **part}]}}


def table(name: str, **options: Any) -> dict[str, Any]:
    return {"reader": "table", "options": {"tables": [{"file": name}], **options}}


def annotations(form: str, name: str, **options: Any) -> dict[str, Any]:
    captions = [{"language": "en", "format": form, "files": [name]}]
    return {"reader": "annotations", "pictures": "coco", "options": {"captions": captions, **options}}


SENTENCES = {"train.en": joined(EN), "train.de": joined(DE)}
PARALLEL = {"texts": "{language}", "parallel": True}
CAPTIONS = {"image": "image", "text": "caption", "language": "language", "split": "split"}
CAPTION_ROWS = [
    {"image": image, "caption": text, "language": language, "split": split}
    for texts, language in ((EN, "en"), (DE, "de"))
    for image, text, split in zip(PICTURES, texts, ("train", "train", "val", "test"), strict=True)
]
PAIR_ROWS = [{"en": en, "de": de} for en, de in zip(EN, DE, strict=True)]


def separated(rows: list[dict[str, str]], separator: str) -> bytes:
    quote = '"' if separator == "," else ""
    cells = [[f"{quote}{cell}{quote}" for cell in row.values()] for row in rows]
    return joined([separator.join(row) for row in [list(rows[0]), *cells]])


def by_line(rows: list[dict[str, str]]) -> bytes:
    return joined([json.dumps(row, ensure_ascii=False) for row in rows])


KARPATHY = {
    "images": [
        {"filename": image, "split": split, "sentences": [{"raw": text}, {"raw": text + "!"}]}
        for image, text, split in zip(PICTURES, EN, ("train", "restval", "val", "test"), strict=True)
    ]
}
COCO = {
    "images": [{"id": n, "file_name": image} for n, image in enumerate(PICTURES)],
    "annotations": [{"image_id": n, "caption": text} for n, text in enumerate(EN)],
}
SAMPLES: Files = {}
for number, text in enumerate(EN):
    SAMPLES |= {f"{number:04}.jpg": b"\xff\xd8\xff a picture", f"{number:04}.txt": text.encode()}
    SAMPLES |= {f"{number:04}.json": json.dumps({"caption": text, "lang": "en", "key": number}).encode()}

CASES: dict[str, Case] = {
    "lines": (lines(parallel=True), SENTENCES, as_it_is),
    "lines, compressed": (lines(parallel=True), SENTENCES, compressed),
    "lines, zipped": (lines(parallel=True), SENTENCES, zipped),
    "lines with pictures": (
        lines(parallel=True, images="images.txt", rows=4) | {"pictures": "flickr30k"},
        SENTENCES | {"images.txt": joined([f"{name}#0" for name in PICTURES])},
        as_it_is,
    ),
    "captions by number": (
        lines(texts="train.{n}.{language}", captions=2, images="images.txt", languages=["en"]),
        {"train.1.en": joined(EN), "train.2.en": joined(EN[::-1]), "images.txt": joined(PICTURES)},
        as_it_is,
    ),
    "tsv": (table("t.tsv", **PARALLEL), {"t.tsv": separated(PAIR_ROWS, "\t")}, as_it_is),
    "csv": (table("t.csv", **CAPTIONS), {"t.csv": separated(CAPTION_ROWS, ",")}, as_it_is),
    "jsonl": (table("t.jsonl", **CAPTIONS), {"t.jsonl": by_line(CAPTION_ROWS)}, as_it_is),
    "jsonl, parallel": (table("t.jsonl", **PARALLEL, split="split"), {"t.jsonl": by_line(
        [row | {"split": "train"} for row in PAIR_ROWS])}, compressed),
    "parquet": (table("t.parquet", **CAPTIONS), {"t.parquet": by_line(CAPTION_ROWS)}, parquet),
    "karpathy": (
        annotations("karpathy", "dataset.json", splits={"karpathy": "dataset.json"}),
        {"dataset.json": json.dumps(KARPATHY).encode()},
        as_it_is,
    ),
    "coco": (annotations("coco", "captions.json"), {"captions.json": json.dumps(COCO).encode()}, zipped),
    "numbered": (
        annotations("numbered", "captions.txt", splits={"lists": {"train": "train.txt", "test": "test.txt"}}),
        {
            "captions.txt": joined([f"{name}#{n}\t{text}" for name in PICTURES for n, text in enumerate(EN[:2])]),
            "train.txt": joined(PICTURES[:3]),
            "test.txt": joined(PICTURES[3:]),
        },
        as_it_is,
    ),
    "webdataset": ({"reader": "webdataset", "options": {"shards": "*.tar"}}, SAMPLES, tarred),
    "webdataset, json": (
        {"reader": "webdataset", "options": {"shards": "*.tar", "text": "json:caption", "language_field": "lang"}},
        SAMPLES,
        tarred,
    ),
    "folder": (
        {"reader": "folder", "options": {}},
        {name: content for name, content in SAMPLES.items() if not name.endswith(".json")},
        as_it_is,
    ),
    "classes": (
        {"reader": "folder", "options": {}},
        {f"{kind}/{n}.png": b"\x89PNG\r\n\x1a\n a picture" for kind in ("dog", "cat") for n in range(2)},
        as_it_is,
    ),
}  # fmt: skip
NEEDED = {"webdataset": "webdataset", "parquet": "pyarrow"}


def case(name: str) -> Any:
    """A parameter, skipped where a package that it takes is not installed."""
    package = NEEDED.get(name.partition(",")[0])
    missing = package is not None and find_spec(package) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


TOKENS = [
    b"\n", b"\r", b"\t", b'"', b",", b"#", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\", b"{", b"]", b" ",
    b"0" * 5000, b"a" * 3000, "\u2028\u200b\u202e".encode(), b"../", b"[" * 3000,
]  # fmt: skip
VALUES = [
    b"null", b"true", b"-1", b"1e999", b"0.5", b"[]", b"{}", b'""', b'" "', rb'"\ud800"', rb'"a\tb\nc"', b'"../../x"',
    rb'"train\u0000"', b'"train/../x"', b'"train.x"', b'["a", null]', b'"' + b"9" * 5000 + b'"', b"9" * 4000, b"",
]  # fmt: skip
ODD_NAMES = ["a b", "ü", "x\ny", "x\ty", "[x]*?", "-x", "x\u202fy", "\udcff", "#", "a@1+2"]
VALUE = re.compile(rb'"[^"\n]*"|[\w.]+')
KINDS = ("flip", "cut", "tail", "insert", "double", "drop", "repeat", "value", "swap", "noise", "empty", "away", "name")

place = st.floats(0, 1, exclude_max=True)
token = st.sampled_from(TOKENS) | st.binary(max_size=8)
damage = st.tuples(st.sampled_from(KINDS), place, place, place, token, st.sampled_from(VALUES))
noise = st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
damages = st.tuples(st.lists(damage, max_size=2), st.lists(damage, max_size=2), noise)


def damaged(files: Files, wrongs: list[Any], stuff: bytes) -> Files:
    """Files with something wrong about some of them."""
    for kind, which, start, stop, token, value in wrongs:
        if not files:
            break
        names = list(files)
        name = names[int(which * len(names))]
        if kind == "swap":
            other = names[int(start * len(names))]
            files = files | {name: files[other], other: files[name]}
        elif kind == "away":
            files = {other: content for other, content in files.items() if other != name}
        elif kind == "name":
            stem, dot, ending = name.partition(".")
            odd = f"{ODD_NAMES[int(start * len(ODD_NAMES))]}{dot}{ending}" if stop < 0.7 else f"{stem}"
            files = {odd if other == name else other: content for other, content in files.items()}
        else:
            files = files | {name: wrong(kind, files[name], start, stop, token, value, stuff)}
    return files


def wrong(kind: str, content: bytes, start: float, stop: float, token: bytes, value: bytes, stuff: bytes) -> bytes:
    """Content with one thing wrong."""
    at, to = sorted((int(start * len(content)), int(stop * len(content))))
    rows = content.splitlines(keepends=True)
    row = int(start * len(rows))
    values = list(VALUE.finditer(content))
    match kind:
        case "flip":
            return content[:at] + bytes([content[at] ^ 1 << int(stop * 8)]) + content[at + 1 :] if content else content
        case "cut":
            return content[:at]
        case "tail":
            return content[at:]
        case "insert":
            return content[:at] + token + content[at:]
        case "double":
            return content[:to] + content[at:]
        case "drop":
            return b"".join(rows[:row] + rows[row + 1 :])
        case "repeat":
            return b"".join(rows[: row + 1] + rows[row:])
        case "value" if values:
            match = values[int(start * len(values))]
            return content[: match.start()] + value + content[match.end() :]
        case "noise":
            return stuff
        case "empty":
            return b""
    return content


def put(files: Files, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def corpus(**more: Any) -> Corpus:
    return Corpus.model_validate(
        {"about": "small", "languages": ["en", "de"], "licences": [], "obtain": "made here", **more}
    )


def assert_readable(folder: Path, manifest: dict[str, Any]) -> None:
    """A prepared folder holds what its manifest says, and all of it can be read."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    del found["manifest.json"]
    assert manifest["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    counts = manifest["counts"]
    captions = read_captions(folder)
    assert len(captions.names) == counts["images"] == len(set(captions.names))
    assert all(captions.names)
    assert len(captions.texts) == sum(sum(split.values()) for split in counts["captions"].values())
    for text in captions.texts:
        assert text
        assert text == " ".join(text.split())
    if not (folder / "bitext").exists():
        assert not counts["sentence_pairs"]
        return
    bitext = open_bitext(folder / "bitext")
    for split, pairs in counts["sentence_pairs"].items():
        assert bitext.pairs(split) == [tuple(pair.split("-")) for pair in sorted(pairs)]
        for source, target in bitext.pairs(split):
            for side in bitext.read(split, source, target):
                assert len(side.tokens) == pairs[f"{source}-{target}"]
                assert all(len(side.tokens[n]) > 2 or not side.texts[n].strip() for n in range(len(side.tokens)))
                assert all(side.texts)


def assert_whole_or_refused(declared: Callable[[], Corpus], source: Path, spm: Path) -> bool:
    """Whether preparing ends well; if not, one line names something that a user can look at, and nothing is left."""
    out = source.parent / "prepared" / "out"
    try:
        manifest = prepare(declared(), out, spm, Source(source, obtain="made here"), workers=1)
    except MclipError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, line
        assert line.isprintable(), ascii(line)
        assert str(source) in line or "the vocabulary cannot spell it" in line, line  # a language, of all files
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return False
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert_readable(out, manifest)
    return True


@pytest.fixture(scope="module")
def spm(squares: Path) -> Path:
    return squares / "bitext" / "sentencepiece.bpe.model"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("name", map(case, CASES))
def test_an_undamaged_source_is_prepared(scratch: Path, spm: Path, name: str) -> None:
    more, files, pack = CASES[name]
    put(pack(files), scratch / name / "source")
    assert assert_whole_or_refused(lambda: corpus(**more), scratch / name / "source", spm)


@pytest.mark.parametrize("name", map(case, CASES))
def test_a_damaged_source_is_prepared_whole_or_refused(scratch: Path, spm: Path, name: str) -> None:
    more, files, pack = CASES[name]

    @thorough
    @given(damages)
    def holds(wrongs: tuple[list[Any], list[Any], bytes]) -> None:
        inside, outside, stuff = wrongs
        shutil.rmtree(scratch / name, ignore_errors=True)
        source = scratch / name / "source"
        source.mkdir(parents=True)
        put(damaged(pack(damaged(files, inside, stuff)), outside, stuff), source)
        assert_whole_or_refused(lambda: corpus(**more), source, spm)

    holds()


OWN = {
    "parallel.tsv": separated(PAIR_ROWS, "\t"),
    "captions.csv": separated(CAPTION_ROWS, ","),
    "captions.jsonl": by_line(CAPTION_ROWS),
    "pairs.jsonl": by_line(PAIR_ROWS),
}


@pytest.mark.parametrize("name", OWN)
def test_a_damaged_table_of_ones_own_is_prepared_whole_or_refused(scratch: Path, spm: Path, name: str) -> None:
    @thorough
    @given(damages)
    def holds(wrongs: tuple[list[Any], list[Any], bytes]) -> None:
        inside, _, stuff = wrongs
        shutil.rmtree(scratch / name, ignore_errors=True)
        source = scratch / name / "source"
        source.mkdir(parents=True)
        inside = [(kind, *rest) for kind, *rest in inside if kind not in ("away", "name")]
        put(damaged({name: OWN[name]}, inside, stuff), source)

        def declared() -> Corpus:
            _, tree = adhoc.declare([], source / name, None, None, [])
            return corpus(**tree)

        assert_whole_or_refused(declared, source, spm)

    holds()
