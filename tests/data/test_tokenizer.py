"""XLM-R's ids against transformers' and fairseq's own, truncation, decoding, and models that are not XLM-R's."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from transformers import XLMRobertaTokenizer

from mclip_kit.data import fairseq_io
from mclip_kit.data.tokenizer import BOS, EOS, MODEL_FILE, PAD, UNK, XlmrTokenizer, train_sentencepiece
from mclip_kit.errors import CheckpointError, DataError

FIXTURE = Path(__file__).parents[2] / ".." / "shared" / "fixtures" / "mclip_tiny"

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
    with pytest.raises(CheckpointError, match="not a readable SentencePiece model"):
        XlmrTokenizer(tmp_path / MODEL_FILE)


def test_training_on_nothing_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="no text"):
        train_sentencepiece([], tmp_path / MODEL_FILE, 100, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("language", ["en", "de"])
def test_ids_are_those_of_the_official_code(language):
    if not FIXTURE.is_dir():
        pytest.skip("the outputs of the official mCLIP code are not beside this checkout")
    texts = json.loads((FIXTURE / "texts.json").read_text(encoding="utf-8"))
    tokenizer = XlmrTokenizer(FIXTURE / "xlmr_base")
    assert len(texts[language]) == 16
    expected = texts[f"{language}_token_ids_without_padding"]
    assert [tokens.tolist() for tokens in tokenizer.encode(texts[language])] == expected
