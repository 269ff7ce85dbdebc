"""Hostile files: none runs code, reads or writes outside its folder, or takes the memory; each is refused by name.

More of them: tests/models/test_safe_load.py (pickles), tests/data/corpora/test_webdataset.py (tars),
tests/models/test_model_folder.py (names outside), tests/models/test_text_encoder.py (code beside weights).
"""

import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mclip_kit.cli import cli
from mclip_kit.config.recipe import load as load_recipe
from mclip_kit.data import images
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import declaration
from mclip_kit.errors import MclipError
from mclip_kit.evaluate.class_names import read_file
from mclip_kit.evaluate.gallery import Gallery, QueryResult
from mclip_kit.evaluate.report import html
from mclip_kit.evaluate.report.results import LISTS
from mclip_kit.interop.facts import front_matter
from mclip_kit.models.encoding import open_picture
from mclip_kit.models.safe_load import read_pickle
from mclip_kit.train.checkpoint import read as read_checkpoint
from tests import tiny

MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&{{7*7}}'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; `../secret.txt` and `../ran` lie outside."""
    (tmp_path / "here").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(MclipError) as caught:
        read()
    assert str(caught.value).isprintable()
    assert not Path("../ran").exists()
    return str(caught.value)


def prepare(*words: str) -> str:
    """The last line of the command, which must end with a mistake."""
    done = CliRunner().invoke(cli, ["prepare", *words, "--out", "out"])
    assert done.exit_code == 2, (done.output, done.exception)
    assert not Path("out").exists()
    assert not Path("../ran").exists()
    return done.stderr.splitlines()[-1]


RUN = "touch ../ran"
OPCODES = {
    "reduce": b"cposix\nsystem\n(X" + struct.pack("<I", len(RUN)) + RUN.encode() + b"tR.",
    "inst": b"(X" + struct.pack("<I", len(RUN)) + RUN.encode() + b"iposix\nsystem\n.",
    "obj": b"(cposix\nsystem\nX" + struct.pack("<I", len(RUN)) + RUN.encode() + b"o.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93X"
    + struct.pack("<I", len(RUN))
    + RUN.encode()
    + b"\x85R.",
    "new object": b"\x80\x02csubprocess\nPopen\nX" + struct.pack("<I", len(RUN)) + RUN.encode() + b"\x85\x81.",
    "build": b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\0\0\0acposix\nsystem\nX"
    + struct.pack("<I", len(RUN))
    + RUN.encode()
    + b"\x85Rsb.",
}


@pytest.mark.parametrize("opcode", ["reduce", "inst", "obj", "stack global"])
def test_these_pickles_do_run_code_in_pythons_own_reader(here: Path, opcode: str) -> None:
    pickle.loads(OPCODES[opcode])
    assert Path("../ran").exists()


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("form", ["bare", "zip", "xz"])
def test_a_pickle_runs_nothing(here: Path, opcode: str, form: str) -> None:
    content = OPCODES[opcode]
    if form == "zip":
        with zipfile.ZipFile(held := io.BytesIO(), "w") as archive:
            for name, part in (("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n")):
                archive.writestr(f"a/{name}", part)
        content = held.getvalue()
    path = here / ("weights.pt.xz" if form == "xz" else "last.pt")
    path.write_bytes(lzma.compress(content) if form == "xz" else content)
    assert refusal(lambda: read_pickle(path)).startswith(f"{path}: ")
    if form != "xz":
        assert refusal(lambda: read_checkpoint(path)).startswith(f"{path}: ")


TAGS = {
    "call": "!!python/object/apply:os.system ['touch ../ran']",
    "new": "!!python/object/new:os.system ['touch ../ran']",
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "object": "!!python/object:subprocess.Popen {}",
    "laughs": "\n  a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"  {new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "endless": "&a [*a]",
    "deep": "[" * 100_000,
    "deep block": "- " * 100_000,
    "deep map": "{a: " * 5000,
    "no number": "!!int ''",
    "no float": "!!float x",
    "huge": "x" * 2_000_000,
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_yaml_runs_nothing_and_ends_soon(here: Path, tag: str) -> None:
    path = here / "own.yaml"
    path.write_text(f"about: {TAGS[tag]}\n")
    for read in (lambda: load_recipe(path), lambda: declaration(str(path)), lambda: read_file(path, ["a"])):
        assert refusal(read).startswith(f"{path}: ")
    (here / "README.md").write_text(f"---\nlicense: {TAGS[tag]}\n---\n")
    assert tag in ("laughs", "endless", "huge") or front_matter(here / "README.md") == {}
    assert not Path("../ran").exists()


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_a_deep_json_is_one_line(here: Path, name: str, deep: str) -> None:
    Path(name).write_text(deep + "\n")
    assert prepare("--pairs", name).startswith(f"Error: {name}")


def table(*names: str) -> Path:
    Path("t.tsv").write_text("image\tcaption\n" + "".join(f"{name}\ta picture\n" for name in names))
    return Path("t.tsv")


@pytest.mark.parametrize("name", ["../secret.txt", "a/../../secret.txt", "..\\\\secret.txt".replace("\\\\", "\\")])
def test_a_name_that_leads_out_of_its_folder_is_refused(here: Path, name: str) -> None:
    assert prepare("--pairs", str(table(name))) == (
        f"Error: picture {name!r}: leads out of .; write its whole path, {here.parent / 'secret.txt'}"
    )


def test_whole_paths_and_names_that_come_back_are_those_of_the_user(here: Path) -> None:
    outside = here.parent / "a.png"
    for path in (outside, here / "b.png"):
        Image.new("RGB", (8, 8)).save(path)
    Path("x").mkdir()
    done = CliRunner().invoke(cli, ["prepare", "--pairs", str(table(str(outside), "x/../b.png")), "--out", "out"])
    assert done.exit_code == 0, done.output
    assert list(read_captions("out").files) == [outside, here / "b.png"]


def png(width: int, height: int, lines: bytes) -> bytes:
    """A picture of 1 bit a pixel, from packed lines."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (1, 60_000), (60_000, 1), (2**31 - 1, 2**31 - 1)])
def test_pictures_that_would_take_the_memory_are_refused(squares: Path, here: Path, width: int, height: int) -> None:
    from mclip_kit.config.recipe import Recipe
    from mclip_kit.config.yaml import parse
    from mclip_kit.train.build import build_model

    whole = bytes((1 + -(-width // 8)) * height) if width * height < 1e6 else b""
    Path("bomb.png").write_bytes(png(width, height, zlib.compress(whole)))
    model = build_model(parse(tiny.recipe(squares), Recipe, "tiny"))
    assert refusal(lambda: model.encode_image("bomb.png")).startswith("bomb.png: ")


def test_large_pictures_with_transparency_take_their_memory_twice(here: Path) -> None:
    import resource

    from mclip_kit.config.model import AS_SEEN
    from mclip_kit.data.pictures import to_rgb

    picture = Image.new("RGBA", (6000, 6000), (250, 0, 0, 128))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert to_rgb(picture, AS_SEEN).getpixel((5999, 5999)) == (252, 127, 127)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2.5 * 4 * 6000 * 6000


def test_no_picture_starts_ghostscript(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(../ran) (w) file \nshowpage\n%%EOF\n"
    Path("gs").write_text("#!/bin/sh\ntouch ../ran\n")
    os.chmod("gs", 0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    Path("a.jpg").write_bytes(eps)
    with Image.open("a.jpg") as found:  # PIL knows it by its content
        assert found.format == "EPS"
    assert "a.jpg: cannot be read as a picture" in refusal(lambda: open_picture("a.jpg"))
    with pytest.raises(OSError, match="cannot identify"):
        images.open_picture("a.jpg")


def parquet(path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"image": ["a.png"], "caption": ["x" * 20_000_000]}
    pq.write_table(pa.table(rows), path, compression="zstd")


def xlsx(path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["image", "caption"])
    book.save(held := io.BytesIO())
    with zipfile.ZipFile(held) as given, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in given.namelist():
            out.writestr(name, given.read(name) + (b" " * 100_000_000 if "sheet1" in name else b""))


def gz(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(b"image\tcaption\n")
        for _ in range(260):
            out.write(b"x" * (1 << 20))


@pytest.mark.parametrize(("name", "write"), [("t.parquet", parquet), ("t.xlsx", xlsx), ("t.tsv.gz", gz)])
def test_a_bomb_is_refused(here: Path, name: str, write: Callable[[Path], None]) -> None:
    write(here / name)
    assert (here / name).stat().st_size < 2_000_000
    said = prepare("--pairs", name)
    assert said.startswith(f"Error: {name}")
    assert "unpack it first, if you trust it" in said


@pytest.mark.parametrize("form", ["xz", "zip"])
def test_weights_that_unpack_to_far_more_are_refused(here: Path, form: str) -> None:
    path = here / f"weights.pt{'.xz' if form == 'xz' else ''}"
    if form == "xz":
        path.write_bytes(lzma.compress(bytes(100_000_000), preset=0))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(100_000_000))
    assert "unpack it first, if you trust it" in refusal(lambda: read_pickle(path))


def test_weights_with_a_wrong_checksum_are_refused(here: Path) -> None:
    import torch

    torch.save({"a": torch.arange(1000)}, "weights.pt")
    content = bytearray(Path("weights.pt").read_bytes())
    content[content.index(struct.pack("<qq", 500, 501))] ^= 1
    Path("weights.pt").write_bytes(content)
    assert "the checksum of" in refusal(lambda: read_pickle("weights.pt"))


def test_an_array_of_objects_runs_nothing(squares: Path, here: Path) -> None:
    folder = tiny.without_hashes(Path(shutil.copytree(squares, here / "data")))
    np.save(folder / "images.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    assert refusal(lambda: read_captions(folder)).startswith(f"{folder / 'images.npy'}: damaged")


class Runs:
    """What runs a command when a careless reader unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (RUN,)


@pytest.mark.parametrize("file", ["captions.arrow", "images.arrow", "images.npy"])
def test_a_damaged_prepared_file_is_not_read(squares: Path, here: Path, file: str) -> None:
    folder = Path(shutil.copytree(squares, here / "data"))
    content = (folder / file).read_bytes()
    tiny.flip(folder / file, content.find(b"red"))  # in a text; of pixels the last byte
    said = refusal(lambda: read_captions(folder))
    assert said.startswith(f"{folder / file}: damaged or edited")
    assert said.endswith(f'remove its line under "files" in {folder / "manifest.json"}')
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][file]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(read_captions(folder).names) == 96


def test_a_report_shows_markup_as_text(here: Path, browser: Any) -> None:
    results: dict[str, Any] = {"evaluations": [], **{name: [] for name in LISTS}}
    gallery = Gallery({MARKUP: [QueryResult("en", MARKUP, [np.zeros((8, 8, 3), np.uint8)], [True])]})
    html.write([html.Report(MARKUP, results, recipe=MARKUP)], here / "report.html", gallery)
    tab = browser.new_page()
    tab.goto((here / "report.html").as_uri())
    assert tab.evaluate("window.hacked") is None
    assert MARKUP in tab.inner_text("body")
    tab.close()
