"""Binarised sentences that text cleaning changes are tokenised again, and only those."""

import random

import numpy as np
from open_clip.tokenizer import get_clean_fn

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.cleaned import UNTOUCHED
from mclip_kit.data.datasets import rows_from_bitexts
from mclip_kit.data.tokenizer import XlmrTokenizer
from tests import tiny
from tests.data.small_bitext import binarize

CLEAN = get_clean_fn("whitespace")
GERMAN = ["Quadrat rot", "“Quadrat” rot", "schÃ¶n &amp; rot", "rot  oben", "Quadrat blau oben"]
ENGLISH = ["red square", "“square” red", "nice & red", "red above", "blue square above"]


def test_dirty_sentences_have_the_ids_of_their_clean_text(squares, tmp_path):
    tokenizer = XlmrTokenizer(squares / "bitext")
    binarize(tmp_path, tokenizer, ("en", "de"), (ENGLISH, GERMAN))
    given: list[str] = []

    def tokenize(texts):
        given.extend(texts)
        return tokenizer.encode([CLEAN(text) for text in texts], 9)

    arguments = [open_bitext(tmp_path)], "train", ["en", "de"], "en"
    how = {"max_tokens": 9, "tokenize": tokenize, "pieces": tokenizer.pieces(), "include_teacher_language": False}
    rows = tiny.rows_of(rows_from_bitexts(*arguments, **how, clean=CLEAN))
    expected = tokenizer.encode([CLEAN(text) for text in GERMAN], 9)
    assert [ids.tolist() for ids in rows.tokens] == [ids.tolist() for ids in expected]
    assert rows.lengths_N.tolist() == [len(ids) for ids in expected]
    assert given == GERMAN[1:3]  # one more space is none to SentencePiece
    unclean = tiny.rows_of(rows_from_bitexts(*arguments, **how))
    assert [ids.tolist() for ids in unclean.tokens] == [ids.tolist() for ids in tokenizer.encode(GERMAN, 9)]
    assert given == GERMAN[1:3]
    assert not np.array_equal(unclean.tokens[2], rows.tokens[2])


def test_what_is_taken_for_clean_is_clean():
    draw, taken = random.Random(0), 0
    for _ in range(3000):
        text = "".join(draw.choice("ab<>'\"&; \t\x1b[]^~`#x27") for _ in range(draw.randint(1, 6)))
        if UNTOUCHED.fullmatch(text):
            taken += 1
            assert CLEAN(text) == text
    assert taken > 500
    for text in ("a & b", "a  b", " a", "a\tb", "a\x7f", "“a”", "ä"):
        assert not UNTOUCHED.fullmatch(text)
