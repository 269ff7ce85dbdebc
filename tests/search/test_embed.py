"""Vectors of pictures from folders, shards, tables and prepared folders: the model's own; what is left out is told."""

import json
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mclip_kit.errors import BusyError, CheckpointError, DataError
from mclip_kit.locks import locked
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.search import embed, pictures
from mclip_kit.search.embed import embed_pictures, embed_texts
from mclip_kit.search.sheet import open_hit
from tests import processes, tiny
from tests.features.tables import dies_at, killed_after
from tests.interop.models import build


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build(squares, {"kind": "mlp", "pool": "mean"}, "linear", 24, tiny.TEACHER)


def read(folder: Path, kind: str = "img_emb") -> tuple[np.ndarray, dict[str, list]]:
    """All vectors of a folder, and the columns of its metadata."""
    vectors_ND = np.concatenate([np.load(file) for file in sorted((folder / kind).iterdir())])
    tables = [pq.read_table(file).to_pydict() for file in sorted((folder / "metadata").iterdir())]
    return vectors_ND, {name: [cell for table in tables for cell in table[name]] for name in tables[0]}


def contents(folder: Path) -> dict[str, bytes]:
    """File -> its bytes, but for the cache, whose shards depend on where it was interrupted."""
    files = [path for path in folder.rglob("*") if path.is_file() and "features" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def shards(colours: Path, folder: Path) -> str:
    """The pictures of a folder in two tars, with captions."""
    folder.mkdir()
    files = sorted(colours.rglob("*.png"))
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for file in files[number::2]:
                caption = folder / f"{file.stem}.txt"
                caption.write_text(f"a {file.stem}\n")
                tar.add(file, file.name)
                tar.add(caption, caption.name)
                caption.unlink()
    return str(folder / "{0..1}.tar")


def test_vectors_of_cpus_and_gpus_are_kept_apart_as_those_of_evaluations_are(model, colours, tmp_path):
    embed_pictures(model, colours, tmp_path / "out", workers=0)
    (tmp_path / "lines.txt").write_text("rot\n", encoding="utf-8")
    embed_texts(model, tmp_path / "lines.txt", tmp_path / "texts")
    tables = [*tmp_path.glob("out/features/image-*/table.json"), *tmp_path.glob("texts/features/*/table.json")]
    assert [json.loads(table.read_text(encoding="utf-8"))["device"] for table in tables] == ["cpu", "cpu"]


def test_a_folder_gives_the_models_own_vectors(model, colours, tmp_path):
    broken = tmp_path / "pictures"
    shutil.copytree(colours, broken)
    (broken / "red" / "broken.png").write_bytes(b"no picture")
    (broken / "red" / "empty.jpg").touch()
    (broken / "red" / "red-left-0.txt").write_text("ein Quadrat\n")
    (broken / "phone.heic").write_bytes(b"?")
    found = embed_pictures(model, broken, tmp_path / "out", made_with="mine")
    vectors_ND, rows = read(tmp_path / "out")
    assert vectors_ND.dtype == np.float32
    assert found.count == len(vectors_ND) == 96
    np.testing.assert_allclose(vectors_ND, model.encode_image(rows["image_path"]).numpy(), atol=2e-7)
    assert rows["width"] == rows["height"] == [tiny.SIZE] * 96
    assert dict(zip(rows["image"], rows["caption"], strict=True))["red/red-left-0.png"] == "ein Quadrat"
    assert sorted(Path(name).name for name in found.unreadable) == ["broken.png", "empty.jpg"]
    assert "broken.png" in (tmp_path / "out" / "unreadable.tsv").read_text()
    said = "\n".join(found.lines())
    assert ".heic" in said
    assert "2 pictures that cannot be read" in said
    facts = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert (facts["vectors"], facts["unreadable"], facts["model"], facts["width"]) == (96, 2, "mine", model.width)
    assert facts["rows"]["left_out"]


def test_shards_and_prepared_folders_and_tables_give_the_same_vectors(model, colours, squares, tmp_path):
    table = tmp_path / "table.csv"
    files = sorted(colours.rglob("*.png"))
    table.write_text("image,caption\n" + "".join(f"{file},a {file.stem}\n" for file in files))
    sources = {"folder": colours, "shards": shards(colours, tmp_path / "tars"), "prepared": squares, "table": table}
    vectors = {}
    for name, source in sources.items():
        embed_pictures(model, source, tmp_path / name)
        vectors_ND, rows = read(tmp_path / name)
        stems = [Path(image).stem for image in rows["image"]]
        vectors[name] = dict(zip(stems, vectors_ND, strict=True))
        for row in (0, 50):
            reopened = np.asarray(open_hit(rows["image_path"][row]))
            original = np.asarray(Image.open(next(colours.rglob(f"{stems[row]}.png"))).convert("RGB"))
            np.testing.assert_array_equal(reopened, original)
        if name in ("shards", "table"):
            assert rows["caption"] == [f"a {stem}" for stem in stems]
    assert dict(zip(*(read(tmp_path / "prepared")[1][name] for name in ("image", "caption")), strict=True))[
        "red-left-0"
    ] == ("red square left, shade 0")
    for name in ("shards", "prepared", "table"):
        assert vectors[name].keys() == vectors["folder"].keys()
        for stem, vector_D in vectors["folder"].items():
            np.testing.assert_allclose(vectors[name][stem], vector_D, atol=2e-7)


def test_what_was_embedded_before_is_not_embedded_again(model, colours, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    shutil.copytree(colours, folder)
    embed_pictures(model, folder, tmp_path / "out")
    first, rows = read(tmp_path / "out")
    (folder / "red").rename(folder / "rouge")
    (folder / "blue" / "blue-left-0.png").unlink()
    Image.new("RGB", (9, 7), "pink").save(folder / "pink.png")
    towers = []
    forward = type(model.image).forward
    monkeypatch.setattr(type(model.image), "forward", lambda self, x: towers.append(len(x)) or forward(self, x))
    embed_pictures(model, folder, tmp_path / "out")
    second, moved = read(tmp_path / "out")
    assert towers == [1]
    before = dict(zip(rows["key"], first, strict=True))
    new = [image for image, key in zip(moved["image"], moved["key"], strict=True) if key not in before]
    assert new == ["pink.png"]
    assert (moved["width"][moved["image"].index("pink.png")], len(second)) == (9, 96)
    for key, vector_D in zip(moved["key"], second, strict=True):
        if key in before:
            np.testing.assert_array_equal(before[key], vector_D)


def test_several_processes_embed_into_one_folder(model, colours, tmp_path):
    model.save(tmp_path / "model")
    words = ["embed", tmp_path / "model", "--images", colours, "--workers", "0", "--out"]
    for name, ranks in (("alone", 1), ("together", 2)):
        done = processes.run(processes.command, *map(str, words), str(tmp_path / name), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("vectors of 96 pictures") == 1
    (alone, rows), (together, others) = (read(tmp_path / name) for name in ("alone", "together"))
    assert rows == others
    np.testing.assert_allclose(alone, together, atol=2e-7)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_killed_while_it_embeds_and_started_again_it_writes_the_same_files(kind, model, colours, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "BLOCK", 10)
    if kind == "shards":
        colours = shards(colours, tmp_path / "shards")
    embed_pictures(model, colours, tmp_path / "whole")

    def embed_and_die(at: int) -> None:
        dies_at("fsync", at)
        embed_pictures(model, colours, tmp_path / "cut")

    codes = []
    while not codes or codes[-1]:  # it dies before its first flush of a file, then before its second, ...
        codes.append(killed_after(60, lambda: embed_and_die(len(codes) + 1)))
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 10
    embed_pictures(model, colours, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".*part*"))


def test_what_is_not_its_own_stays(model, colours, tmp_path):
    (tmp_path / "mine" / "metadata").mkdir(parents=True)
    (tmp_path / "mine" / "metadata" / "thesis.txt").write_text("years")
    with pytest.raises(CheckpointError, match="metadata: not written by mclip-kit embed"):
        embed_pictures(model, colours, tmp_path / "mine")
    assert (tmp_path / "mine" / "metadata" / "thesis.txt").read_text() == "years"
    embed_pictures(model, colours, tmp_path / "out")
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match="img_emb: these vectors would lose their metadata"):
        embed_texts(model, tmp_path / "texts.txt", tmp_path / "out")
    assert len(read(tmp_path / "out")[0]) == 96


def test_another_table_is_read_and_not_the_one_before(model, colours, tmp_path):
    files = sorted(colours.rglob("*.png"))
    for number in range(2):
        rows = "".join(f"{file},no. {number}\n" for file in files[number * 5 : number * 5 + 4])
        (tmp_path / "table.csv").write_text(f"image,caption\n{rows}")
        embed_pictures(model, tmp_path / "table.csv", tmp_path / "out")
        found = read(tmp_path / "out")[1]
        assert [Path(name).stem for name in found["image"]] == [
            file.stem for file in files[number * 5 : number * 5 + 4]
        ]
        assert set(found["caption"]) == {f"no. {number}"}


def test_names_that_are_not_utf8_and_pictures_that_are_too_long(model, colours, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(next(colours.rglob("*.png")), folder / "a\udcff.png")
    Image.new("L", (1, 60_000)).save(folder / "strip.png")
    found = embed_pictures(model, folder, tmp_path / "out")
    assert found.count == 1
    assert [Path(name).name for name in found.unreadable] == ["strip.png"]
    assert "1 x 60000, more than 250 times as long as wide" in (tmp_path / "out" / "unreadable.tsv").read_text()
    assert embed_pictures(model, folder, tmp_path / "out").count == 1
    (name,) = pq.read_table(tmp_path / "out" / "metadata")["image_path"].to_pylist()
    assert name.endswith("a\\udcff.png")
    assert open_hit(name).size == Image.open(folder / "a\udcff.png").size  # the page and the sheet show it


def test_texts_are_embedded_by_the_student(model, tmp_path):
    lines = ["ein Quadrat", "", "a red square, left", "ein Quadrat"]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert embed_texts(model, tmp_path / "texts.txt", tmp_path / "out", "fp16").count == 4
    vectors_ND, rows = read(tmp_path / "out", "text_emb")
    assert vectors_ND.dtype == np.float16
    np.testing.assert_allclose(vectors_ND, model.encode_text(lines).numpy(), atol=1e-3)
    assert rows["caption"] == lines
    assert rows["key"][0] == rows["key"][3] != rows["key"][1]


def test_what_cannot_be_embedded_is_told_in_one_line(model, colours, squares, tmp_path):
    with pytest.raises(DataError, match="nowhere: no folder of pictures"):
        embed_pictures(model, "nowhere", tmp_path / "out")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken: nothing to embed; left out: 1 pictures that cannot be read"):
        embed_pictures(model, tmp_path / "broken", tmp_path / "out")
    assert not (tmp_path / "out" / "embeddings.json").exists()
    (tmp_path / "out").mkdir(exist_ok=True)
    with locked(tmp_path / "out" / embed.FACTS), pytest.raises(BusyError, match="another process embeds into it"):
        embed_pictures(model, colours, tmp_path / "out")
    spoilt = build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, tiny.TEACHER)
    spoilt.clip_projector.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="is non-finite"):
        embed_pictures(spoilt, colours, tmp_path / "spoilt")
