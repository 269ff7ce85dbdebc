"""Corpora in object storage, and prepared folders there."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from PIL import Image

from mclip_kit.data.captions import read_captions
from mclip_kit.data.images import read_bytes
from mclip_kit.storage import copies, place
from tests import tiny
from tests.storage.buckets import bucket, contents, new_machine
from tests.storage.test_commands import check_no_paths, put, run

__all__ = ["bucket"]
ROWS = 12


def picture(number: int) -> bytes:
    """A PNG that no other number has."""
    held = io.BytesIO()
    Image.new("RGB", (16, 16), (20 * (number % ROWS), 90 * (number // ROWS), 0)).save(held, "PNG")
    return held.getvalue()


def shard(number: int) -> bytes:
    """A tar of pictures, each with captions in English and German."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for row in range(ROWS):
            captions = {"txt": f"picture {number} {row}".encode(), "de.txt": f"Bild {number} {row}".encode()}
            for ending, content in {"png": picture(ROWS * number + row), **captions}.items():
                info = tarfile.TarInfo(f"{row:03}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return held.getvalue()


def hashes(system: Any, folder: str) -> dict[str, str]:
    """The hashes of files in a prepared folder's manifest, without that of the table that names pictures."""
    files: dict[str, str] = json.loads(system.cat_file(f"{folder}/manifest.json"))["files"]
    return {name: value for name, value in files.items() if name != "images.arrow"}


def local_files(path: Path) -> Any:
    """The file system of this machine."""
    path.mkdir(exist_ok=True)
    return fsspec.filesystem("file")


@pytest.mark.parametrize("pattern", ["{00..01}.tar", "*.tar"])
def test_shards(bucket: Any, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        bucket.pipe_file(f"/b/my tars/{number:02}.tar", shard(number))
        Path(f"{number:02}.tar").write_bytes(shard(number))
    said = run(
        "prepare", "--webdataset", f"memory://b/my tars/{pattern}", "--out", "memory://b/data/own", "--workers", 1
    )
    assert said.splitlines()[0].startswith("memory://b/data/own: 24 pictures")
    run("prepare", "--webdataset", pattern, "--out", "local", "--workers", 1)
    assert hashes(bucket, "/b/data/own") == hashes(local_files(tmp_path), "local")
    check_no_paths(bucket)
    new_machine(tmp_path / "second", monkeypatch)
    captions = read_captions("memory://b/data/own")
    assert not place("memory://b/my tars").exists()  # pictures are not brought before they are read
    assert captions.picture(0).getpixel((0, 0)) == (0, 0, 0)
    assert {path.name for path in place("memory://b/my tars").iterdir()} == {"00.tar"}
    assert "memory://b/my tars/01.tar@" in run("data", "show", "memory://b/data/own", "--table", "images")
    same = run(
        "prepare", "--webdataset", f"memory://b/my tars/{pattern}", "--out", "memory://b/data/own", "--workers", 1
    )
    assert same == said  # it is there, and is not prepared again
    bucket.pipe_file("/b/my tars/00.tar", shard(2))
    said = run("prepare", "--webdataset", f"memory://b/my tars/{pattern}", "--out", "memory://b/data/own", code=2)
    assert (
        "memory://b/my tars/00.tar: has changed since memory://b/data/own was prepared; replace it with --again" in said
    )
    words = ("--webdataset", f"memory://b/my tars/{pattern}", "--out", "memory://b/data/own", "--workers", 1)
    run("prepare", *words, "--again")
    assert hashes(bucket, "/b/data/own") != hashes(local_files(tmp_path), "local")


def test_shards_that_do_not_fit_together(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        bucket.pipe_file(f"/b/tars/{number}.tar", shard(number))
    monkeypatch.setenv(copies.SIZE, str(1.5 * len(shard(0)) / 1e9))
    run("prepare", "--webdataset", "memory://b/tars/{0..2}.tar", "--out", "local", "--workers", 1)
    captions = read_captions("local")
    assert len(captions.files) == 3 * ROWS
    for row in range(3 * ROWS):
        assert read_bytes(captions.files[row]) == picture(row)
        assert len(list(place("memory://b/tars").iterdir())) == 1
    monkeypatch.setenv(copies.SIZE, str(0.5 * len(shard(0)) / 1e9))
    copies._seen.clear()
    with pytest.raises(Exception, match="set MCLIP_KIT_STORAGE_SIZE to more GB"):
        captions.open(0)


def test_a_table_with_pictures(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"pics/{row}.png,picture {row}\n" for row in range(ROWS))
    for system, at in ((bucket, "/b/corpus"), (local_files(tmp_path / "corpus"), str(tmp_path / "corpus"))):
        system.makedirs(f"{at}/pics", exist_ok=True)
        system.pipe_file(f"{at}/table.csv", f"image,caption\n{rows}".encode())
        for row in range(ROWS):
            system.pipe_file(f"{at}/pics/{row}.png", picture(row))
    run("prepare", "--pairs", "memory://b/corpus/table.csv", "--out", "memory://b/data/own", "--workers", 1)
    run("prepare", "--pairs", "corpus/table.csv", "--out", "local", "--workers", 1)
    assert hashes(bucket, "/b/data/own") == hashes(local_files(tmp_path), "local")
    run("prepare", "--folder", "memory://b/corpus/pics", "--out", "memory://b/data/folder", "--workers", 1)
    images = "--pairs", "memory://b/corpus/table.csv", "--images", "memory://b/corpus/pics"
    run("prepare", *images, "--out", "memory://b/data/images", "--workers", 1)
    new_machine(tmp_path / "second", monkeypatch)
    for name in ("own", "folder", "images"):
        captions = read_captions(f"memory://b/data/{name}")
        assert sorted(read_bytes(path) for path in captions.files) == sorted(map(picture, range(ROWS)))
    check_no_paths(bucket)


def test_parallel_text_and_declarations(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {
        code: "".join(f"{word} {row} {row % 7}\n" for row in range(60)) for code, word in (("en", "a"), ("de", "ein"))
    }
    for code, text in texts.items():
        bucket.pipe_file(f"/b/text/train.{code}", text.encode())
        Path(f"train.{code}").write_text(text)
    small = ("--set", "vocabulary.pieces=40", "--workers", 1)
    run(
        "prepare",
        "--bitext",
        "en=memory://b/text/train.en",
        "de=memory://b/text/train.de",
        "--out",
        "memory://b/one",
        *small,
    )
    run("prepare", "--bitext", "en=train.en", "de=train.de", "--out", "local", *small)
    assert hashes(bucket, "/b/one") == hashes(local_files(tmp_path), "local")
    declaration = """
about: lines in a bucket
reader: lines
languages: [en, de]
licences: []
obtain: it is there
vocabulary: {pieces: 40}
options: {parts: [{texts: "train.{language}", parallel: true}]}
"""
    bucket.pipe_file("/b/corpus.yaml", declaration.encode())
    run("prepare", "memory://b/corpus.yaml", "--source", "memory://b/text", "--out", "memory://b/two", "--workers", 1)
    assert hashes(bucket, "/b/two").keys() == hashes(bucket, "/b/one").keys() - {
        name for name in hashes(bucket, "/b/one") if "valid" in name or "test" in name
    }
    check_no_paths(bucket)


def test_a_preparation_that_could_not_be_sent_is_sent_by_the_same_command(
    bucket: Any, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket.pipe_file("/b/tars/0.tar", shard(0))
    words = ("prepare", "--webdataset", "memory://b/tars/0.tar", "--out", "memory://b/own", "--workers", 1)
    sent = list[str]()
    put_file = bucket.put_file

    def cut(file: str, remote: str) -> None:
        sent.append(remote)
        if remote.endswith(".arrow"):
            raise OSError("the cable is cut")
        put_file(file, remote)

    with monkeypatch.context() as patched:
        patched.setattr(bucket, "put_file", cut)
        said = run(*words, code=2)
    advice = said.rstrip().rpartition("; send it again with: ")[2]
    assert advice.startswith("mclip-kit data send memory://b/own/")
    assert "/b/own/manifest.json" not in bucket.find("/b/own")
    before = len(sent)
    assert run(*words).startswith("memory://b/own: 12 pictures")
    assert "/b/own/manifest.json" in bucket.find("/b/own")
    assert before == len(sent)
    assert run("data", "send", "memory://b/own") == "memory://b/own: nothing waits to be sent\n"
    with monkeypatch.context() as patched:
        patched.setattr(bucket, "put_file", cut)
        run(*words, "--again", code=2)
    assert "files sent" in run("data", "send", "memory://b/own")
    assert "manifest.json" in contents(bucket, "/b/own")
    assert "not a URL of object storage" in run("data", "send", "local", code=2)


def test_mistakes_name_urls(bucket: Any, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bucket.pipe_file("/b/x/y.txt", b"1")
    bucket.pipe_file("/b/bad.yaml", b"about: 1\n")
    put(bucket, squares, "/b/squares")
    bucket.pipe_file("/b/there/config.json", b"{}")
    tree = tiny.recipe(Path("D")) | {"encoder": "hf:memory://b/enc", "teacher": {"model": "local-dir:memory://b/clip"}}
    tree["data"] = {"captions": "memory://b/squares", "bitext": "memory://b/squares/bitext"}
    bucket.pipe_file("/b/towers.yaml", yaml.safe_dump(tree).encode())
    before, towers = bucket.find("/"), ("train", "memory://b/towers.yaml")
    for words, said in (
        (
            ("prepare", "--webdataset", "memory://b/{0..3}.tar"),
            "memory://b/0.tar: there is no such shard of memory://b/{0..3}.tar",
        ),
        (
            ("prepare", "--pairs", "memory://b/none.csv"),
            "memory://b/none.csv: no such file; correct the path after --pairs",
        ),
        (("prepare", "--folder", "memory://b/none"), "memory://b/none: No such file or directory"),
        (("prepare", "--folder", "memory://b/x"), "memory://b/x: no pictures in it"),
        (
            ("prepare", "--bitext", "en=memory://b/en", "de=memory://b/de"),
            "--bitext en=memory://b/en: there is no such file",
        ),
        (("train", "memory://b/none.yaml"), "memory://b/none.yaml: no such file"),
        (("train", "memory://b/bad.yaml"), "memory://b/bad.yaml: about: give a text, not 1"),
        ((*towers, "--set", "data.captions=memory://b/none"), "memory://b/none: not a prepared corpus"),
        ((*towers, "--set", "data.captions=s3://b/../x"), "data.captions: s3://b/../x: not a place"),
        (towers, "encoder hf:memory://b/enc: memory://b/enc/config.json is missing"),
        ((*towers, "--set", "encoder=hf:memory://b/there"), "memory://b/clip/open_clip_config.json: missing"),
        (("eval", "memory://b/none"), "memory://b/none: no such folder; give a model folder"),
        (("eval", "memory://b/x"), "memory://b/x/config.json: missing; memory://b/x is not a complete model folder"),
        (("report", "memory://b/x"), "memory://b/x: no eval/DATA.SPLIT/results.json and no metrics.jsonl"),
        (("index", "memory://b/x", "--out", "o"), "memory://b/x: no vectors"),
        (("search", "memory://b/x", "dog"), "memory://b/x: no index"),
        (("embed", "memory://b/x", "--images", "memory://b/x", "--out", "o"), "memory://b/x/config.json: missing"),
        (("export", "open-clip", "memory://b/x", "--out", "memory://b/x"), "memory://b/x: exists already; remove it"),
        (("data", "show", "memory://b/x"), "memory://b/x: not a prepared corpus (no manifest.json)"),
        (("init", "memory://b/x"), "memory://b/x: init looks into folders of this machine"),
    ):
        found = run(*words, code=2)
        assert said in found, (words, found)
    assert bucket.find("/") == before
