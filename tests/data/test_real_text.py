"""What `prepare` writes is what fairseq writes and reads; Multi30K comes out as its authors count it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from mclip_kit.cli import cli
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from tests import tiny
from tests.shared import MULTI30K, missing

LANGUAGES = ("en", "de", "fr", "cs")


def test_fairseqs_translation_task_reads_our_folder(squares: Path) -> None:
    folder = squares / "bitext"
    plain = {"dataset_impl": None, "required_seq_len_multiple": 1, "train_subset": "train"}
    task = TranslationTask.setup_task(TranslationConfig(data=str(folder), source_lang="en", target_lang="de", **plain))
    task.load_dataset("train")
    read = task.datasets["train"]
    source, target = open_bitext(folder).read("train", "en", "de")
    assert len(read) == len(source.tokens)
    for row in range(len(read)):
        assert read[row]["source"].tolist() == source.tokens[row][1:].tolist()
        assert read[row]["target"].tolist() == target.tokens[row][1:].tolist()
    pieces = source.tokens[0][1:]
    assert task.source_dictionary.string(pieces, "sentencepiece") == source.texts[0]


@pytest.fixture(scope="module")
def multi30k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multi30K without its pictures, prepared by the command line."""
    if not MULTI30K.is_dir():
        pytest.skip(missing(MULTI30K))
    out = tmp_path_factory.mktemp("multi30k") / "data"
    words = ["prepare", "multi30k", "--source", str(MULTI30K), "--langs", ",".join(LANGUAGES), "--out", str(out)]
    done = CliRunner().invoke(cli, [*words, "--set", "vocabulary.pieces=20000"])
    assert done.exit_code == 0, done.output
    assert "33,546 of 33,546 picture files were not found" in done.output
    return out


def test_multi30k_has_the_rows_that_its_authors_count(multi30k: Path) -> None:
    counts = json.loads((multi30k / "manifest.json").read_text(encoding="utf-8"))["counts"]
    for split, rows in {"train": 29_000, "valid": 1014, "test": 1000}.items():
        assert counts["captions"][split] == dict.fromkeys(LANGUAGES, rows)
        assert counts["sentence_pairs"][split] == dict.fromkeys(("en-de", "en-fr", "en-cs"), rows)
        assert counts["captions"][f"{split}_task2"] == dict.fromkeys(("en", "de"), 5 * rows)
    assert counts["captions"]["test_2017_mscoco"] == dict.fromkeys(("en", "de", "fr"), 461)
    assert counts["captions"]["test_2018_flickr"] == dict.fromkeys(LANGUAGES, 1071)


def test_multi30k_captions_keep_their_pictures_and_lines(multi30k: Path) -> None:
    captions = read_captions(multi30k)
    first = captions.select("train", ["en", "cs"])[:2]
    assert [captions.names[i] for i in captions.images[first]] == ["1000092795.jpg"] * 2
    assert captions.texts[first[0]] == "Two young, White males are outside near many bushes."
    english = set(captions.texts[captions.select("train_task2", ["en"])])
    assert set(captions.texts[captions.select("train", ["en"])]) <= english  # task 1 translated one of the five
    mixed = captions.select({"en": "train_task2", "de": "train_task2", "fr": "train", "cs": "train"})
    assert len(mixed) == 2 * 145_000 + 2 * 29_000
    assert {path.parent.name for path in captions.files} == {"pictures"}


def test_multi30k_is_binarised_as_by_fairseq_preprocess(multi30k: Path, tmp_path: Path) -> None:
    bitext = multi30k / "bitext"
    source, target = open_bitext(bitext).read("valid", "en", "de")
    peers = tiny.fairseq_preprocess({"en": list(source.texts), "de": list(target.texts)}, bitext, tmp_path)
    for language in ("en", "de"):
        for suffix in ("bin", "idx"):
            ours = np.fromfile(bitext / f"valid.en-de.{language}.{suffix}", np.uint8)
            np.testing.assert_array_equal(ours, np.fromfile(peers / f"train.en-de.{language}.{suffix}", np.uint8))
