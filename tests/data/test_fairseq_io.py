"""Binarised folders: fairseq opens ours, we open fairseq's, and damage is named in one line."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from fairseq.data import Dictionary, indexed_dataset

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.tokenizer import BOS, EOS, XlmrTokenizer
from mclip_kit.errors import DataError
from tests import tiny

SENTENCES = [np.array(ids, np.int32) for ids in ([7, 8, 9, 10, 2], [2], [11, 12, 2], [13, 2])]


def opened_by_fairseq(prefix: Path):
    return indexed_dataset.make_dataset(str(prefix), impl=indexed_dataset.infer_dataset_impl(str(prefix)))


def in_file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A binarised side."""
    prefix = tmp_path / "train.en-de.en"
    fairseq_io.write_sentences(SENTENCES, prefix, 100)
    return prefix


@pytest.mark.parametrize(("vocabulary", "bytes_an_id"), [(1000, 2), (70_000, 4)])
def test_fairseq_opens_what_we_write(tmp_path, vocabulary, bytes_an_id):
    sentences = [*SENTENCES, np.array([vocabulary - 1, vocabulary - 2, 2])]
    fairseq_io.write_sentences(sentences, tmp_path / "x", vocabulary)
    dataset = opened_by_fairseq(tmp_path / "x")
    assert [item.tolist() for item in dataset] == [sentence.tolist() for sentence in sentences]
    assert dataset.sizes.tolist() == [5, 1, 3, 2, 3]
    assert in_file(tmp_path / "x", "bin").stat().st_size == bytes_an_id * 14


@pytest.mark.parametrize("vocabulary", [1000, 70_000])
def test_we_read_what_we_write_with_both_specials(tmp_path, vocabulary):
    sentences = [*SENTENCES, np.array([vocabulary - 1, 2])]
    fairseq_io.write_sentences(sentences, tmp_path / "x", vocabulary)
    read = fairseq_io.Sentences(tmp_path / "x")
    assert [tokens.tolist() for tokens in read] == [[BOS, *sentence] for sentence in sentences]
    assert {tokens.dtype for tokens in read} == {np.dtype(np.int32)}


def test_nothing_but_the_two_files_is_left(prefix):
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["train.en-de.en.bin", "train.en-de.en.idx"]


@pytest.mark.parametrize("max_tokens", [None, 2, 3, 4, 6])
def test_lengths_are_those_of_the_cut_sentences_and_end_marks_stay(prefix, max_tokens):
    read = fairseq_io.Sentences(prefix, max_tokens)
    kept = None if max_tokens is None else max_tokens - 2
    cut = [[BOS, *ids[:-1].tolist()[:kept], EOS] for ids in SENTENCES]
    assert [tokens.tolist() for tokens in read] == cut
    assert read.lengths().tolist() == [len(tokens) for tokens in cut]
    for part in (slice(0, len(cut)), slice(1, 3)):
        ids, lengths_B = read.block(part)
        assert ids.tolist() == [number for tokens in cut[part] for number in tokens]
        assert lengths_B.tolist() == [len(tokens) for tokens in cut[part]]


def test_fairseq_loads_our_dictionary_and_we_read_it(tmp_path):
    pieces = ["\u2581a", "ß", "日", "1", "#", "\u2581"]
    fairseq_io.write_dictionary(pieces, tmp_path / "dict.en.txt")
    assert Dictionary.load(str(tmp_path / "dict.en.txt")).symbols == ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    assert fairseq_io.read_dictionary(tmp_path / "dict.en.txt") == pieces


@pytest.mark.parametrize(
    "content",
    [None, b"a 1\na 1\n", b"a\n", b"\xff\xfe 1\n"],
    ids=["missing", "twice the same piece", "no count", "not UTF-8"],
)
def test_a_dictionary_that_fairseq_cannot_load_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "dict.en.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        fairseq_io.read_dictionary(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def refusal(prefix: Path) -> str:
    """The message of the DataError; half-open datasets are gone when it returns."""
    try:
        fairseq_io.Sentences(prefix)
        kind, message = None, "accepted"
    except Exception as error:
        kind, message = type(error), str(error)
    assert kind is DataError, f"{kind}: {message}"
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kept", [0, 5, 8, 9, 12, 17, 18, 20, 26, 30, -1])
def test_a_truncated_index_is_named(prefix, kept):
    index = in_file(prefix, "idx")
    index.write_bytes(index.read_bytes()[:kept])
    assert refusal(prefix).startswith(str(index))


@pytest.mark.parametrize(
    ("start", "garbage"),
    [(0, b"garbage garbage"), (9, b"\7"), (17, b"\x63"), (18, b"\xff" * 8)],
    ids=["magic", "version", "type", "count"],
)
def test_a_garbled_index_is_named(prefix, start, garbage):
    index = in_file(prefix, "idx")
    whole = index.read_bytes()
    index.write_bytes(whole[:start] + garbage + whole[start + len(garbage) :])
    assert refusal(prefix).startswith(str(index))


@pytest.mark.parametrize("kept", [0, 7, -1])
def test_truncated_data_are_named(prefix, kept):
    data = in_file(prefix, "bin")
    data.write_bytes(data.read_bytes()[:kept])
    assert refusal(prefix).startswith(str(data))


@pytest.mark.parametrize(("suffix", "kept"), [("idx", 30), ("bin", 0), ("bin", -1)])
def test_damage_leaves_nothing_on_the_screen(prefix, suffix, kept, monkeypatch):
    file, noise = in_file(prefix, suffix), []
    file.write_bytes(file.read_bytes()[:kept])
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    refusal(prefix)
    assert [str(item.exc_value) for item in noise] == []


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_missing_file_is_named(prefix, suffix):
    in_file(prefix, suffix).unlink()
    assert refusal(prefix).startswith(f"{in_file(prefix, suffix)}: missing")


ENGLISH = ["red square left, shade 1", "grey square above, shade 2", "a ☃ square"]
GERMAN = ["Quadrat rot links, Ton 1", "Quadrat grün oben, Ton 2", "Quadrat"]


@pytest.fixture(scope="module")
def preprocessed(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SentencePiece-ised text, binarised by fairseq's own command with the corpus's dictionaries."""
    folder = tmp_path_factory.mktemp("preprocessed")
    return tiny.fairseq_preprocess({"en": ENGLISH, "de": GERMAN}, squares / "bitext", folder)


def test_ids_that_fairseq_preprocess_wrote_are_the_tokenizers(preprocessed, squares):
    tokenizer = XlmrTokenizer(squares / "bitext")
    for side, lines in zip(open_bitext(preprocessed).read("train", "en", "de"), (ENGLISH, GERMAN), strict=True):
        assert [tokens.tolist() for tokens in side.tokens] == [tokens.tolist() for tokens in tokenizer.encode(lines)]


def test_texts_of_a_folder_from_fairseq_preprocess_are_decoded(preprocessed):
    assert open_bitext(preprocessed).pairs("train") == [("en", "de")]
    source, target = open_bitext(preprocessed).read("train", "en", "de")
    assert list(source.texts)[:2] == ENGLISH[:2]
    assert source.texts[2].split() == ["a", "square"]  # what is unknown to the dictionary is gone
    assert list(target.texts) == GERMAN


def test_texts_are_decoded_whole_where_ids_are_cut(preprocessed):
    source, _ = open_bitext(preprocessed).read("train", "en", "de", max_tokens=4)
    assert source.texts[0] == ENGLISH[0]
    assert len(source.tokens[0]) == 4


def test_a_full_disk_says_so():
    ids, sizes_N = np.full(100_000, 7), np.full(10_000, 10)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), open("/dev/full", "wb", buffering=0) as disk:
        fairseq_io.SentenceWriter(disk, disk, np.uint16).add(ids, sizes_N)
