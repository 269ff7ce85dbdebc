"""Bulk binarising: fairseq-preprocess's bytes, however the lines are cut into blocks and whoever encodes them."""

import concurrent.futures
import random
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from mclip_kit.data.bitext import open_bitext, raw_text
from mclip_kit.data.corpora import Cleaning
from mclip_kit.data.fairseq_io import write_dictionary
from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.prepare import binarize as module
from mclip_kit.data.prepare.binarize import binarize
from mclip_kit.data.prepare.fingerprints import side_hashes
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer
from tests import tiny

LANGUAGES = ("en", "de")
ENGLISH = ["", "red", "a ☃ square", "red square left, shade 1", "grey square above " * 9, "犬"]
GERMAN = ["Quadrat rot", "rot", "Quadrat grün oben, Ton 2", "", "Quadrat grau links", "Ton " * 30]


@pytest.fixture(scope="module")
def small(squares: Path) -> XlmrTokenizer:
    return XlmrTokenizer(squares / "bitext")


@pytest.fixture(scope="module")
def large(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> XlmrTokenizer:
    """The same pieces behind 70,000 that no text has, so that ids need four bytes."""
    folder = tmp_path_factory.mktemp("large")
    model = sentencepiece_model_pb2.ModelProto.FromString((squares / "bitext" / MODEL_FILE).read_bytes())
    real = list(model.pieces[3:])
    del model.pieces[3:]
    for number in range(70_000):
        model.pieces.add(piece=f"\ue000{number}", score=-30)
    model.pieces.extend(real)
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    tokenizer = XlmrTokenizer(folder)
    for language in LANGUAGES:
        write_dictionary(tokenizer.pieces(), folder / f"dict.{language}.txt")
    return tokenizer


def made_up(count: int) -> tuple[list[str], list[str]]:
    """Parallel lines of all lengths, some empty."""
    draw = random.Random(count)
    sides = [" ".join(side).split() for side in (ENGLISH, GERMAN)]
    left, right = ([" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(count)] for words in sides)
    return left, right


def sides(folder: Path, left: list[str], right: list[str]) -> tuple[Path, Path]:
    """The text of a pair, and its prefixes."""
    folder.mkdir(parents=True, exist_ok=True)
    prefixes = folder / "train.en-de.en", folder / "train.en-de.de"
    for prefix, lines in zip(prefixes, (left, right), strict=True):
        raw_text(prefix).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return prefixes


def written(
    folder: Path, tokenizer: XlmrTokenizer, lines: tuple[list[str], list[str]], workers: int = 2, **rules: object
) -> int:
    """Binarise a pair; how many were too long."""
    pair = sides(folder, *lines)
    [counts] = binarize([pair], tokenizer, Cleaning.model_validate(rules), 2 * len(lines[0]), workers)
    return counts.too_long


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ids(folder: Path) -> list[list[list[int]]]:
    return [[tokens.tolist() for tokens in side.tokens] for side in open_bitext(folder).read("train", "en", "de")]


@pytest.mark.parametrize(("name", "bytes_an_id"), [("small", 2), ("large", 4)])
def test_files_are_those_of_fairseq_preprocess(request, tmp_path, name, bytes_an_id):
    tokenizer, lines = request.getfixturevalue(name), (ENGLISH, GERMAN)
    assert written(tmp_path / "ours", tokenizer, lines) == 0
    folder = tokenizer.path.parent
    theirs = tiny.fairseq_preprocess(dict(zip(LANGUAGES, lines, strict=True)), folder, tmp_path)
    ours = contents(tmp_path / "ours")
    for language in LANGUAGES:
        for suffix in ("bin", "idx"):
            file = f"train.en-de.{language}.{suffix}"
            assert ours[file] == (theirs / file).read_bytes()
    [sizes, _] = [[len(tokens) - 1 for tokens in side] for side in ids(tmp_path / "ours")]
    assert len(ours["train.en-de.en.bin"]) == bytes_an_id * sum(sizes)
    assert max(map(max, ids(tmp_path / "ours")[0])) > 65536 * (bytes_an_id == 4)


@pytest.mark.parametrize(("block", "count"), [(1, 7), (4, 7), (4, 8), (7, 7), (16, 7), (32, 500)])
def test_blocks_make_no_difference(tmp_path, monkeypatch, small, block, count):
    lines = made_up(count)
    written(tmp_path / "one", small, lines)
    monkeypatch.setattr(module, "BLOCK", block)
    written(tmp_path / "many", small, lines)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert ids(tmp_path / "many") == [[one.tolist() for one in small.encode(side)] for side in lines]


@pytest.mark.parametrize("rules", [{}, {"max_tokens": 6}, {"max_tokens": 6, "too_long": "drop"}])
def test_processes_write_what_threads_write(tmp_path, monkeypatch, small, rules):
    lines = made_up(300)
    monkeypatch.setattr(module, "BLOCK", 32)
    in_threads = written(tmp_path / "threads", small, lines, **rules)
    asked = []
    pool = concurrent.futures.ProcessPoolExecutor
    monkeypatch.setattr(
        concurrent.futures, "ProcessPoolExecutor", lambda *args, **more: asked.append(args) or pool(*args, **more)
    )
    monkeypatch.setattr(module, "LARGE", 0)
    in_processes = written(tmp_path / "processes", small, lines, **rules)
    assert asked == [(2,)]
    assert in_processes == in_threads
    assert contents(tmp_path / "processes") == contents(tmp_path / "threads")


def test_one_worker_needs_no_process(tmp_path, monkeypatch, small):
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", None)
    written(tmp_path, small, made_up(5), workers=1)
    assert len(ids(tmp_path)[0]) == 5


def test_long_texts_are_cut_and_counted(tmp_path, monkeypatch, small):
    monkeypatch.setattr(module, "BLOCK", 16)
    lines = made_up(100)
    too_long = sum(len(ids) > 7 for side in lines for ids in small.encode(side))
    assert 0 < too_long < 200
    assert written(tmp_path, small, lines, max_tokens=7) == too_long
    assert ids(tmp_path) == [[one.tolist() for one in small.encode(side, 7)] for side in lines]
    assert tuple(list(side.texts) for side in open_bitext(tmp_path).read("train", "en", "de")) == lines


def test_pairs_with_a_long_text_are_dropped_and_counted(tmp_path, monkeypatch, small):
    monkeypatch.setattr(module, "BLOCK", 16)
    lines = made_up(100)
    coded = list(zip(*map(small.encode, lines), strict=True))
    fits = [max(map(len, pair)) <= 7 for pair in coded]
    assert 0 < sum(fits) < 90
    assert any(len(left) <= 7 < len(right) for left, right in coded)
    assert any(len(right) <= 7 < len(left) for left, right in coded)
    assert written(tmp_path, small, lines, max_tokens=7, too_long="drop") == 100 - sum(fits)
    kept = [[text for text, fit in zip(side, fits, strict=True) if fit] for side in lines]
    assert ids(tmp_path) == [[one.tolist() for one in small.encode(side)] for side in kept]
    assert [list(side.texts) for side in open_bitext(tmp_path).read("train", "en", "de")] == kept


def test_where_all_pairs_are_too_long_nothing_is_left(tmp_path, small):
    assert written(tmp_path, small, (ENGLISH[1:3], GERMAN[1:3]), max_tokens=3, too_long="drop") == 2
    assert raw_text(tmp_path / "train.en-de.en").read_bytes() == b""


@pytest.mark.parametrize("rules", [{}, {"max_tokens": 6, "too_long": "drop"}])
def test_hashes_are_those_of_the_text_that_stays(tmp_path, monkeypatch, small, rules):
    monkeypatch.setattr(module, "BLOCK", 16)
    written(tmp_path, small, made_up(100), **rules)
    for language in LANGUAGES:
        prefix = tmp_path / f"train.en-de.{language}"
        stayed = raw_text(prefix).read_text("utf-8").split("\n")[:-1]
        np.testing.assert_array_equal(np.fromfile(side_hashes(prefix), "<u8"), hash_texts(stayed))


def test_each_pair_is_whole_when_its_count_comes(tmp_path, small):
    pairs = [sides(tmp_path / str(n), *made_up(n)) for n in (3, 5)]
    coming = binarize(pairs, small, Cleaning.model_validate({"max_tokens": 4}), 16, 2)
    counts = []
    for n, count in zip((3, 5), coming, strict=True):
        counts.append(count.too_long)
        assert len(ids(tmp_path / str(n))[0]) == n
        assert (tmp_path / "5" / "train.en-de.de.idx").exists() == (n == 5)
    assert counts == [sum(len(one) > 4 for side in made_up(n) for one in small.encode(side)) for n in (3, 5)]


@pytest.mark.parametrize("workers", [1, 2])
def test_unknown_pieces_are_counted_by_side(tmp_path, small, workers):
    lines = (["red", "a ☃ square", "", "☃☃ 犬"], ["rot", "grün", "blau", "gelb"])
    [counts] = binarize([sides(tmp_path, *lines)], small, Cleaning.model_validate({}), 8, workers)
    coded = [[ids[1:-1] for ids in small.encode(side)] for side in lines]
    assert counts.pieces == tuple(sum(map(len, side)) for side in coded)
    assert counts.unknown == (sum(int((ids == 3).sum()) for ids in coded[0]), 0)
    assert counts.unknown[0] == 3


def test_other_line_marks_of_unicode_end_no_line(tmp_path, small):
    lines = (["a\u2028b", "c\x85d", "e\x0bf"], ["g", "h", "i"])
    written(tmp_path, small, lines)
    assert ids(tmp_path) == [[one.tolist() for one in small.encode(side)] for side in lines]
