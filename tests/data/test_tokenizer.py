"""XLM-R's ids against transformers' and fairseq's own, truncation, decoding, and models that are not XLM-R's."""

import gzip
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from transformers import XLMRobertaTokenizer

from mclip_kit.data import fairseq_io
from mclip_kit.data.tokenizer import BOS, EOS, MODEL_FILE, PAD, UNK, XlmrTokenizer, train_sentencepiece
from mclip_kit.errors import CheckpointError, DataError
from tests.shared import MCLIP_TINY, MULTI30K, needs

LINES = [
    "two dogs run along the beach",
    "a man in a red coat holds a bag",
    "zwei Hunde laufen am Strand entlang",
    "ein Mann in einem grünen Mantel hält eine Tüte",
    "deux chiens courent le long de la plage",
    "un homme élégant près de la fenêtre",
    "两只狗沿着海滩奔跑",
    "一个男人拿着一个袋子",
    "كلبان يركضان على طول الشاطئ",
    "رجل يرتدي معطفا أحمر",
]
UNSEEN = {
    "known words": "a dog in a green coat",
    "German": "ein Hund hält den Mantel",
    "French": "une fenêtre élégante",
    "Chinese": "一只狗拿着袋子",
    "Arabic": "رجل على الشاطئ",
    "mixed": "the 狗 hält الشاطئ fenêtre",
    "unknown characters": "dogs ☃☃ run ж 犬",
    "unknown at both ends": "ж dogs ж",
    "compatibility forms": "ｄｏｇｓ ﬁne № ½",
    "combining marks": "fene\u0302tre e\u0301le\u0301gante",
    "odd spaces": "  two\u00a0dogs\u3000run \t along\u2003 ",
    "line breaks": "two dogs\nrun\r\nalong",
    "special pieces as text": "a <s> dog",
    "empty": "",
    "only spaces": "   ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of five languages and its dictionary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = train_sentencepiece(LINES, folder / MODEL_FILE, 200, 1.0)
    fairseq_io.write_dictionary(tokenizer.pieces(), folder / "dict.txt")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> XlmrTokenizer:
    return XlmrTokenizer(folder)


@pytest.fixture(scope="module")
def transformers_own(folder: Path) -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer.from_pretrained(str(folder))


def ids(tokenizer: XlmrTokenizer, text: str, max_tokens: int | None = None) -> list[int]:
    return tokenizer.encode([text], max_tokens)[0].tolist()


@pytest.mark.parametrize("name", [name for name in UNSEEN if name != "special pieces as text"])
def test_ids_are_those_of_transformers(ours, transformers_own, name):
    assert ids(ours, UNSEEN[name]) == transformers_own(UNSEEN[name])["input_ids"]


@pytest.mark.parametrize("name", UNSEEN)
def test_ids_are_those_of_fairseqs_dictionary_over_the_pieces(ours, folder, name):
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    pieces = " ".join(ours.spm.encode(UNSEEN[name], out_type=str))
    expected = dictionary.encode_line(pieces, append_eos=True, add_if_not_exist=False).tolist()
    assert ids(ours, UNSEEN[name])[1:] == expected


def test_specials_and_vocabulary_are_those_of_fairseqs_dictionary(ours, folder):
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    assert (dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()) == (BOS, PAD, EOS, UNK)
    assert ours.vocabulary == len(dictionary) + 1  # <mask>


def test_vocabulary_is_that_of_transformers(ours, transformers_own):
    assert ours.vocabulary == len(transformers_own)
    assert transformers_own.mask_token_id == ours.vocabulary - 1


def test_a_text_without_known_characters_is_one_unknown_a_word(ours):
    assert UNK in ids(ours, "жж")
    assert ids(ours, "жж") == ids(ours, "ж")


def test_no_text_is_only_specials(ours):
    assert ids(ours, "") == [BOS, EOS]
    assert ours.encode([]) == []


def test_many_texts_at_once_give_the_ids_of_each_alone(ours):
    together = ours.encode(LINES * 20)
    assert all(tokens.dtype == np.int32 for tokens in together)
    assert [tokens.tolist() for tokens in together] == [ids(ours, line) for line in LINES] * 20


@pytest.mark.parametrize("max_tokens", [2, 3, 7])
def test_a_long_text_loses_its_last_pieces_and_keeps_both_ends(ours, max_tokens):
    whole = ids(ours, LINES[0])
    assert len(whole) > 7
    assert ids(ours, LINES[0], max_tokens) == [*whole[: max_tokens - 1], EOS]


def test_a_text_that_fits_is_not_cut(ours):
    whole = ids(ours, LINES[0])
    assert ids(ours, LINES[0], len(whole)) == whole


@pytest.mark.parametrize("line", LINES)
def test_decoding_gives_the_text_back(ours, line):
    assert ours.decode(ids(ours, line)) == line


def test_decoding_leaves_specials_out(ours):
    tokens = ids(ours, LINES[0])
    mask = ours.vocabulary - 1
    assert ours.decode([*tokens[:3], UNK, *tokens[3:], PAD, PAD]) == LINES[0]
    assert ours.decode([*tokens[:3], mask, *tokens[3:]]) == LINES[0]


def test_pieces_are_those_of_dict_txt_in_order(ours, folder):
    assert ours.pieces() == Dictionary.load(str(folder / "dict.txt")).symbols[4:]


@pytest.mark.parametrize(
    "specials",
    [{"unk_id": 3, "pad_id": 0}, {"bos_id": -1}, {"bos_id": 2, "eos_id": 1}],
    ids=["another order", "no <s>", "swapped"],
)
def test_a_model_with_other_special_pieces_is_refused(tmp_path, specials):
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=150, hard_vocab_limit=False, **specials
    )
    with pytest.raises(CheckpointError, match=r"m\.model: .*<unk> <s> </s>"):
        XlmrTokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("content", [None, b"", b"not a model"], ids=["missing", "empty", "garbage"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="missing" if content is None else "not a readable SentencePiece model"):
        XlmrTokenizer(tmp_path / MODEL_FILE)


def test_training_on_nothing_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="no text"):
        train_sentencepiece([], tmp_path / MODEL_FILE, 100, 1.0)
    assert not list(tmp_path.iterdir())


@needs(MCLIP_TINY)
@pytest.mark.parametrize("language", ["en", "de"])
def test_ids_are_those_of_the_official_code(language):
    texts = json.loads((MCLIP_TINY / "texts.json").read_text(encoding="utf-8"))
    tokenizer = XlmrTokenizer(MCLIP_TINY / "xlmr_base")
    assert len(texts[language]) == 16
    expected = texts[f"{language}_token_ids_without_padding"]
    assert [tokens.tolist() for tokens in tokenizer.encode(texts[language])] == expected


# What follows holds three programs against each other on a larger vocabulary: ours, fairseq's path as its published
# XLM-R takes it (SentencePiece pieces, joined by spaces, looked up in dict.txt), and transformers.
HARD = {
    "emoji": "dogs 😀 run 🏖️ 👋🏽",
    "joined emoji": "a family 👨‍👩‍👧‍👦 and 🏳️‍🌈",
    "spaces of many kinds": "two\u00a0dogs\u202frun\u2007a\u1680man\u2028in\u2029a\u3000coat",
    "tabs and line ends": "two\tdogs\t\trun\va\f man\r\nin\ra",
    "separators": "a\x1cman\x1din\x1ea\x1fcoat",
    "no-width spaces": "two\u200bdogs\ufeffrun\u2060along\u180ethe",
    "byte order mark": "\ufeffdogs",
    "empty": "",
    "only spaces": " \u3000\t\u00a0 ",
    "Thai": "สุนัขสองตัววิ่งบนชายหาด",
    "Arabic": "كلبانِ يركُضانِ ـ على الشاطئ",
    "Hebrew": "שני כלבים\u200f רצים",
    "Hindi": "दो कुत्ते",
    "combining marks": "e\u0301le\u0301gant n\u0303 a\u0323\u0302 Z\u0351\u0343algo",
    "hangul": "\u1112\u1161\u11ab 한",
    "unknown characters": "ж☃ dogs ☃☃ ж",
    "unknown alone": "☃",
    "many unknown": "☃" * 50 + " " + "犬" * 20,
    "a long word": "a" * 300,
    "SentencePiece's own mark": "▁dogs ▁ run ▁",
    "compatibility forms": "ｄｏｇｓ ﬁne № ½ ㎏ Ⅳ 𝒅𝒐𝒈 𝟚",
    "soft hyphen": "do\u00adgs",
    "controls": "a\x00man\x01in\x7fa",
    "tags and private use": "x\U000e0067\U000e007fy \ue000dogs\uf8ff",
    "no characters": "a\ufffeb\uffffc\ufffdd",
    "quotes": "«dogs» – “run” … ‚x‘",
    "Turkish and German cases": "İstanbul ıI ẞß",
}
SPECIALS_AS_TEXT = ["a <s> dog", "a <mask> dog", "dog<mask>", "<pad> a </s> <unk> dog"]


def real_text() -> dict[str, list[str]]:
    """Language -> lines: every fourth training sentence of Multi30K; where it is missing, the names of emoji."""
    if not MULTI30K.is_dir():
        return emoji_names("en", "de", "fr", "zh")
    lines = {}
    for language in ("en", "de", "fr", "cs"):
        path = MULTI30K / "task1" / "raw" / f"train.{language}.gz"
        lines[language] = gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")[::4]
    return lines


def emoji_names(*languages: str) -> dict[str, list[str]]:
    emoji = pytest.importorskip("emoji", reason="Multi30K is missing and the extra `demo` is not installed")
    for language in languages:
        emoji.config.load_language(language)
    entries = [entry for entry in emoji.EMOJI_DATA.values() if all(language in entry for language in languages)]
    return {name: [entry[name].replace("_", " ").strip(":") for entry in entries] for name in languages}


class Programs(NamedTuple):
    """Three tokenizers of one SentencePiece model."""

    ours: XlmrTokenizer
    theirs: XLMRobertaTokenizer
    dictionary: Dictionary
    bpe: SentencepieceBPE

    def of_ours(self, texts: Sequence[str]) -> list[list[int]]:
        return [tokens.tolist() for tokens in self.ours.encode(texts)]

    def of_fairseq(self, texts: Sequence[str]) -> list[list[int]]:
        look_up = partial(self.dictionary.encode_line, append_eos=True, add_if_not_exist=False)
        return [look_up(f"<s> {self.bpe.encode(text)}").tolist() for text in texts]

    def of_transformers(self, texts: Sequence[str]) -> list[list[int]]:
        return self.theirs(list(texts))["input_ids"]


def programs(folder: Path, lines: Sequence[str], pieces: int, coverage: float) -> Programs:
    ours = train_sentencepiece(lines, folder / MODEL_FILE, pieces, coverage)
    ours.save(folder)
    fairseq_io.write_dictionary(ours.pieces(), folder / "dict.txt")
    settings = {"sentencepiece_model": str(folder / MODEL_FILE), "sentencepiece_alpha": None}
    bpe = SentencepieceBPE(Namespace(sentencepiece_enable_sampling=False, **settings))
    theirs = XLMRobertaTokenizer.from_pretrained(str(folder))
    return Programs(ours, theirs, Dictionary.load(str(folder / "dict.txt")), bpe)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return programs(tmp_path_factory.mktemp("small"), LINES, 200, 1.0)


@pytest.fixture(scope="module")
def text() -> dict[str, list[str]]:
    return real_text()


@pytest.fixture(scope="module")
def real(text: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Programs:
    lines = [line for lines in text.values() for line in lines]
    every, pieces, coverage = (2, 8000, 0.9995) if MULTI30K.is_dir() else (1, 4000, 0.99)
    return programs(tmp_path_factory.mktemp("real"), lines[::every], pieces, coverage)


def test_real_text_has_the_ids_of_fairseq_and_of_transformers(real, text):
    unknown = 0
    for language, lines in text.items():
        assert len(lines) == 7250 if MULTI30K.is_dir() else len(lines) > 3000
        ours = real.of_ours(lines)
        unknown += sum(UNK in tokens for tokens in ours)
        for name, theirs in (("fairseq", real.of_fairseq(lines)), ("transformers", real.of_transformers(lines))):
            different = [line for line, a, b in zip(lines, ours, theirs, strict=True) if a != b]
            assert different == [], (language, name)
    assert 0 < unknown < 6000


def test_the_large_vocabulary_is_one_in_all_three(real):
    assert real.ours.vocabulary == len(real.dictionary) + 1 == len(real.theirs) > 3900


@pytest.mark.parametrize("name", HARD)
def test_hard_texts_have_the_ids_of_fairseq_and_of_transformers(small, name):
    (ours,) = small.of_ours([HARD[name]])
    assert [ours] == small.of_fairseq([HARD[name]])
    assert [ours] == small.of_transformers([HARD[name]])


def test_hard_texts_have_the_same_ids_in_the_large_vocabulary(real):
    texts = list(HARD.values())
    assert real.of_ours(texts) == real.of_fairseq(texts) == real.of_transformers(texts)


@pytest.mark.parametrize("text", SPECIALS_AS_TEXT)
def test_special_pieces_as_text_are_text_as_in_fairseq_and_not_special_as_in_transformers(small, text):
    (ours,) = small.of_ours([text])
    assert [ours] == small.of_fairseq([text])
    assert not {BOS, PAD, EOS, small.ours.vocabulary - 1} & set(ours[1:-1])
    (theirs,) = small.of_transformers([text])  # it looks for them before SentencePiece sees the text
    assert {BOS, PAD, EOS, small.ours.vocabulary - 1} & set(theirs[1:-1])


def test_every_white_space_of_unicode_but_one_has_the_ids_of_fairseq(small):
    """U+0085 alone is not white space to SentencePiece and is to Python.

    SentencePiece gives it out as an unknown piece. fairseq joins the pieces by spaces and splits the line at white
    space again, which loses that piece; ours keeps it as one `<unk>`; transformers makes it a space.
    """
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    assert len(spaces) > 25
    texts = [f"two dogs{space}run{space}{space} along" for space in spaces]
    found = zip(spaces, small.of_ours(texts), small.of_fairseq(texts), strict=True)
    assert [space for space, ours, theirs in found if ours != theirs] == ["\x85"]
    text = "dogs\x85run"
    (ours,), (theirs,), (third,) = small.of_ours([text]), small.of_fairseq([text]), small.of_transformers([text])
    assert ours.count(UNK) == 1
    assert [token for token in ours if token != UNK] == theirs
    assert [third] == small.of_ours(["dogs run"])
