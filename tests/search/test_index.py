"""Indexes are exact or measured; pictures come, move and go; queries of many threads get what one thread gets."""

import doctest
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from mclip_kit.data.captions import read_captions
from mclip_kit.errors import BusyError, CheckpointError, DataError
from mclip_kit.locks import locked
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.search import index
from mclip_kit.search.embed import embed_pictures, embed_texts
from mclip_kit.search.index import build
from mclip_kit.search.search import Search, untrained_script
from tests import tiny
from tests.interop.models import build as build_model

WIDTH = 16


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build_model(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)


@pytest.fixture(scope="module")
def embedded(model, colours, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "embeddings"
    embed_pictures(model, colours, folder)
    return folder


def foreign(folder: Path, vectors_ND: np.ndarray, paths: list[str] | None = None, files: int = 1) -> Path:
    """Vectors of another program, in clip-retrieval's layout."""
    for name in ("img_emb", "metadata"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    paths = paths or [f"{row}.jpg" for row in range(len(vectors_ND))]
    for number, part in enumerate(np.array_split(np.arange(len(vectors_ND)), files)):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors_ND[part])
        table = pa.table({"image_path": [paths[row] for row in part], "caption": [f"no. {row}" for row in part]})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def drawn(count: int, seed: int = 0) -> np.ndarray:
    vectors_ND = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def exact(vectors_ND: np.ndarray, queries_QD: np.ndarray, top: int) -> np.ndarray:
    return np.argsort(-queries_QD @ vectors_ND.T, axis=1, kind="stable")[:, :top]


def test_an_exact_index_ranks_as_eval_does(model, squares, tmp_path):
    from mclip_kit.evaluate.retrieval import evaluate

    embed_pictures(model, squares, tmp_path / "embeddings")
    assert build(tmp_path / "embeddings", tmp_path / "index").recall is None
    search, captions = Search(tmp_path / "index", model), read_captions(squares)
    gallery = captions.gallery("test")
    names = [captions.names[image] for image in gallery]
    name_of = dict(zip(captions.names, range(len(captions.names)), strict=True))
    for language in ("en", "de", "fr"):
        rows = captions.select("test", [language])
        ranks = evaluate(model, captions, "test", [language])[language].t2i_Q
        for row, rank in zip(rows, ranks, strict=True):
            hits = search.texts(str(captions.texts[row]), top=search.count)[0]
            images = [int(hit.file.rpartition("@")[2]) for hit in hits]
            own = [image for image in images if captions.names[image] in names]
            assert own.index(name_of[captions.names[captions.images[row]]]) + 1 == rank


def test_the_teachers_old_vectors_are_searched_by_the_student(model, colours, tmp_path):
    files = [str(path) for path in sorted(colours.rglob("*.png"))]
    clip = model.clip[0]
    with torch.no_grad():  # by open_clip alone
        pixels = torch.stack([clip.transform(Image.open(file).convert("RGB")) for file in files])
        old_ND = clip.model.encode_image(pixels, normalize=True).numpy()
    build(foreign(tmp_path / "old", old_ND, files), tmp_path / "index")
    embed_pictures(model, colours, tmp_path / "new")
    build(tmp_path / "new", tmp_path / "index2")
    queries = ["rotes Quadrat links", "carré bleu", "a yellow square"]
    old, new = (Search(tmp_path / name, model) for name in ("index", "index2"))
    for own, other in zip(old.texts(queries, 20), new.texts(queries, 20), strict=True):
        assert [hit.file for hit in own] == [hit.file for hit in other]
        np.testing.assert_allclose([hit.score for hit in own], [hit.score for hit in other], atol=1e-6)
    with pytest.raises(CheckpointError, match=r"does not say which model.*--model"):
        Search(tmp_path / "index")


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_vectors_are_appended_moved_and_dropped(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "FEWEST", 256)
    monkeypatch.setattr(index, "ADDED", 100)
    first_ND = drawn(1000)
    built = build(foreign(tmp_path / "vectors", first_ND, files=3), tmp_path / "index", kind)
    assert (built.count, built.added, built.gone, built.same) == (1000, 1000, 0, 0)
    kept = [row for row in range(1000) if row % 10]
    second_ND = np.concatenate([first_ND[kept], drawn(50, 1), first_ND[1:2]])
    paths = [f"moved/{row}.jpg" for row in kept] + [f"new/{row}.jpg" for row in range(50)] + ["copy.jpg"]
    built = build(foreign(tmp_path / "vectors", second_ND, paths), tmp_path / "index")
    assert (built.kind, built.count, built.added, built.gone, built.same) == (kind, 950, 50, 100, 1)
    facts, opened, rows = index.open_index(tmp_path / "index")
    assert opened.ntotal == (950 if kind == "flat" else 1050)
    assert facts["found"] == 950
    queries_QD = np.concatenate([drawn(40, 2), first_ND[:10]])
    _, ids_QK = index.nearest(opened, queries_QD, 10, index.gone_of(rows))
    found = np.array([[rows["image_path"][row].as_py() for row in ids] for ids in ids_QK.tolist()])
    wanted = np.array(paths[:-1])[exact(second_ND[:-1], queries_QD, 10)]
    assert not set(found.flat) & {f"{row}.jpg" for row in range(1000)}
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)])
    assert share == 1 if kind == "flat" else share > (0.95 if kind == "hnsw" else 0.5)
    if kind == "hnsw":
        assert built.recall > 0.95
        third = build(foreign(tmp_path / "vectors", drawn(300, 5)), tmp_path / "index")  # most are deleted: built anew
        assert (third.count, third.gone) == (300, 950)
        assert index.open_index(tmp_path / "index")[1].ntotal == 300


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_update_with_nothing_new_or_only_deletions_and_a_return(kind, tmp_path):
    vectors_ND, paths = drawn(60), [f"{row}.jpg" for row in range(60)]
    build(foreign(tmp_path / "vectors", vectors_ND), tmp_path / "index", kind)
    built = build(tmp_path / "vectors", tmp_path / "index")
    assert (built.count, built.added, built.gone) == (60, 0, 0)
    for _ in range(2):
        built = build(foreign(tmp_path / "vectors", vectors_ND[:-1], paths[:-1]), tmp_path / "index")
        assert built.count == 59
    assert (built.added, built.gone) == (0, 0)  # of the second time
    opened = index.open_index(tmp_path / "index")
    _, ids_QK = index.nearest(opened.index, vectors_ND[-1:], 5, index.gone_of(opened.rows))
    assert "59.jpg" not in [opened.rows["image_path"][row].as_py() for row in ids_QK[0].tolist()]
    built = build(foreign(tmp_path / "vectors", vectors_ND, paths), tmp_path / "index")
    assert (built.count, built.added, built.gone) == (60, 1, 0)
    opened = index.open_index(tmp_path / "index")
    _, ids_QK = index.nearest(opened.index, vectors_ND[-1:], 1, index.gone_of(opened.rows))
    assert opened.rows["image_path"][int(ids_QK[0, 0])].as_py() == "59.jpg"


def test_keys_of_other_programs_are_not_taken_for_contents(tmp_path):
    vectors_ND = drawn(40)
    folder = foreign(tmp_path / "vectors", 7 * vectors_ND)  # not of length 1
    file = folder / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(file).append_column("key", pa.array(["0", None] * 20)), file)
    built = build(folder, tmp_path / "index")
    assert (built.count, built.same) == (40, 0)
    opened = index.open_index(tmp_path / "index")
    scores_QK, ids_QK = index.nearest(opened.index, vectors_ND, 1, index.gone_of(opened.rows))
    assert ids_QK[:, 0].tolist() == list(range(40))
    np.testing.assert_allclose(scores_QK, 1, atol=1e-5)
    shutil.rmtree(folder / "metadata")
    assert build(folder, tmp_path / "other").count == 40
    assert index.open_index(tmp_path / "other").rows["image_path"][7].as_py() == "vector 7"
    vectors_ND[3, 3] = np.nan
    with pytest.raises(DataError, match="a vector is non-finite"):
        build(foreign(tmp_path / "nan", vectors_ND), tmp_path / "nan.index")


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "index.json"])
def test_a_damaged_index_is_named_and_built_anew(name, model, embedded, tmp_path):
    build(embedded, tmp_path / "index", "hnsw")
    (tmp_path / "index" / name).write_bytes(b"[]")
    with pytest.raises(CheckpointError, match=rf"{name}: damaged.*; run mclip-kit index again"):
        Search(tmp_path / "index", model)
    assert build(embedded, tmp_path / "index").count == 96
    assert Search(tmp_path / "index", model).count == 96


@pytest.mark.parametrize("where", ["img_emb", "metadata"])
def test_damaged_vectors_are_not_indexed(where, embedded, tmp_path):
    folder = Path(shutil.copytree(embedded, tmp_path / "embedded"))
    (file,) = (folder / where).iterdir()
    tiny.flip(file, -100)
    with pytest.raises(DataError, match=rf"{file.name}: damaged or edited.*; embed again, or, if you edited it"):
        build(folder, tmp_path / "index")
    facts = json.loads((folder / "embeddings.json").read_text(encoding="utf-8"))
    del facts["files"][f"{where}/{file.name}"]  # as the message says
    (folder / "embeddings.json").write_text(json.dumps(facts), encoding="utf-8")
    if where == "img_emb":
        build(folder, tmp_path / "index")


def test_vectors_of_which_a_part_is_gone_are_not_indexed(embedded, tmp_path):
    shutil.copytree(embedded, tmp_path / "vectors")
    facts = json.loads((embedded / "embeddings.json").read_text(encoding="utf-8"))
    facts["files"] |= {"img_emb/img_emb_0001.npy": "0" * 64, "metadata/metadata_0001.parquet": "0" * 64}
    (tmp_path / "vectors" / "embeddings.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(DataError, match=r"img_emb_0001.npy: missing; embed again"):
        build(tmp_path / "vectors", tmp_path / "index")


def test_recall_is_measured_with_captions_where_there_are_some(tmp_path):
    folder = foreign(tmp_path / "vectors", drawn(500))
    (folder / "text_emb").mkdir()
    np.save(folder / "text_emb" / "text_emb_0.npy", drawn(80, 3).astype(np.float16))
    built = build(folder, tmp_path / "index", "hnsw")
    assert built.queries == "80 of its captions"
    assert built.recall > 0.9
    assert json.loads((tmp_path / "index" / "index.json").read_text())["recall"] == built.recall


def test_many_threads_get_what_one_gets(model, embedded, colours, tmp_path):
    build(embedded, tmp_path / "index")
    search = Search(tmp_path / "index", model)
    queries = [f"{colour} square {place}" for colour in tiny.COLOURS for place in tiny.PLACES]
    files = sorted(colours.rglob("*.png"))[: len(queries)]
    alone = [search.texts(query)[0] for query in queries], [search.pictures(file)[0] for file in files]
    barrier = threading.Barrier(8)

    def work(number: int) -> tuple:
        barrier.wait(60)
        order = np.random.default_rng(number).permutation(len(queries))
        found = {row: (search.texts(queries[row])[0], search.pictures(files[row])[0]) for row in order.tolist()}
        return [found[row][0] for row in range(len(queries))], [found[row][1] for row in range(len(files))]

    with ThreadPoolExecutor(8) as threads:
        assert all(found == alone for found in threads.map(work, range(8)))


def test_texts_are_read_without_the_clip_which_is_loaded_when_it_is_needed(model, squares, embedded, tmp_path):
    build(embedded, tmp_path / "index")
    model.save(tmp_path / "model")
    whole, search = Search(tmp_path / "index", model), Search(tmp_path / "index", tmp_path / "model")
    assert search.texts("ein rotes Quadrat") == whole.texts("ein rotes Quadrat")
    assert not isinstance(search.student, MultilingualClip)
    picture = Image.fromarray(tiny.content().pixels[5])
    assert search.pictures(picture) == whole.pictures(picture)
    assert search.student is search.model
    assert search.texts("a red square", tower="teacher") == whole.texts("a red square", tower="teacher")
    with pytest.raises(ValueError, match="tower: must be student or teacher, not 'image'"):
        search.texts("rot", tower="image")


def test_what_does_not_fit_is_told_in_one_line(model, squares, embedded, tmp_path):
    with pytest.raises(CheckpointError, match="no index"):
        Search(tmp_path, model)
    with pytest.raises(DataError, match="no vectors"):
        build(tmp_path, tmp_path / "index")
    (tmp_path / "texts.txt").write_text("a\n")
    embed_texts(model, tmp_path / "texts.txt", tmp_path / "texts")
    with pytest.raises(DataError, match="vectors of texts only"):
        build(tmp_path / "texts", tmp_path / "index")
    with pytest.raises(DataError, match=r"ivfpq needs 9,984 vectors or more, there are 96"):
        build(embedded, tmp_path / "index", "ivfpq")
    build(embedded, tmp_path / "index")
    wider = build_model(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, tiny.TEACHER)
    with pytest.raises(CheckpointError, match="16 numbers, the model's 24"):
        Search(tmp_path / "index", wider)
    other = build_model(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    next(other.image.parameters()).data.add_(1)
    with pytest.raises(CheckpointError, match="another image tower"):
        Search(tmp_path / "index", other)
    other.save(tmp_path / "other model")
    with pytest.raises(CheckpointError, match="another image tower"):
        Search(tmp_path / "index", tmp_path / "other model")
    embed_pictures(other, squares, tmp_path / "other")
    with pytest.raises(CheckpointError, match="of another image tower"):
        build(tmp_path / "other", tmp_path / "index")
    with locked(tmp_path / "index" / index.FACTS), pytest.raises(BusyError, match="another process writes"):
        build(embedded, tmp_path / "index")
    (tmp_path / "index" / "index.faiss").write_bytes(b"no index")
    with pytest.raises(CheckpointError, match=r"damaged.*run mclip-kit index again"):
        Search(tmp_path / "index", model)
    folder = foreign(tmp_path / "odd", drawn(5))
    np.save(folder / "img_emb" / "img_emb_0.npy", np.zeros((3, WIDTH), np.float32))
    with pytest.raises(DataError, match="3 vectors, but 5 rows"):
        build(folder, tmp_path / "index3")


def test_the_examples_of_docstrings_run(model, colours, tmp_path, monkeypatch):
    from mclip_kit.search import web

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for file in sorted(colours.rglob("*.png"))[::40]:
        shutil.copy(file, tmp_path / "photos")
    for documented in (embed_pictures, build, Search, web.build_page, untrained_script):
        names = {**vars(web), **globals(), "model": model}
        examples = doctest.DocTestParser().get_doctest(documented.__doc__, names, documented.__name__, None, None)
        assert examples.examples
        output: list[str] = []
        assert doctest.DocTestRunner().run(examples, out=output.append).failed == 0, "".join(output)


@pytest.mark.parametrize(
    ("text", "languages", "script"),
    [
        ("красное яблоко", ["en", "de"], "Cyrillic"),
        ("красное яблоко", ["en", "ru"], None),
        ("红苹果", ["ja"], None),
        ("りんご", ["zh"], "Hiragana"),
        ("2 🍎!", ["en"], None),
        ("an apple", ["zh"], "Latin"),
        ("แอปเปิ้ล", [], None),
        ("yabloko", ["sr"], None),
    ],
)
def test_a_script_that_was_not_trained_is_named(text, languages, script):
    assert untrained_script(text, languages) == script
