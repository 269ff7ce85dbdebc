"""Names of special tokens in a text are text, with every kind of vocabulary; an empty text is one token."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.models.encoding import CLEANERS
from mclip_kit.models.special_tokens import save_as_text
from mclip_kit.models.text_encoder import TransformersTokenizer

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
TEXTS = ["red <s> square", "<s>", "a </s> b", "<pad>", "<mask> x", "red<mask>", "<unk> q", "</s></s>", "<<s>>"]


def unigram() -> tuple[Any, dict[str, str]]:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*((token, 0.0) for token in special), *((f"▁{c}", -3.0) for c in "abs<"), ("▁", -2.0)]
    pieces += [*((c, -4.0) for c in [*LETTERS, *"</>"]), ("<mask>", 0.0)]
    built = Tokenizer(models.Unigram(pieces, unk_id=3))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return built, {**names, "mask_token": "<mask>"}


def word_pieces() -> tuple[Any, dict[str, str]]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: n for n, token in enumerate([*special, *LETTERS, *(f"##{c}" for c in LETTERS), "[", "]"])}
    built = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    return built, dict(names)


def bytes_of_a_decoder() -> tuple[Any, dict[str, str]]:
    special = ["<pad>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    built = Tokenizer(models.BPE(vocabulary, []))
    built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return built, {"pad_token": "<pad>", "eos_token": "<|endoftext|>"}


@pytest.mark.parametrize("make", [unigram, word_pieces, bytes_of_a_decoder], ids=lambda make: make.__name__)
def test_no_text_gives_a_special_id(tmp_path, make):
    built, names = make()
    PreTrainedTokenizerFast(tokenizer_object=built, **names).save_pretrained(tmp_path)
    tokenizer = TransformersTokenizer(str(tmp_path))
    frame = [int(index) for index in tokenizer.encode(["a"])[0]]
    special = {built.token_to_id(token) for token in names.values()}
    for token in names.values():
        for text in (token, f"a {token} b", f"{token}{token}", f"a{token}b"):
            ids = [int(index) for index in tokenizer.encode([text])[0]]
            inner = ids[1:-1] if len(frame) > 1 and frame[0] in special else ids
            assert inner, text
            assert not special & set(inner), (text, ids)
    tokenizer.save(tmp_path / "again")
    again = TransformersTokenizer(str(tmp_path / "again"))
    assert all((a == b).all() for a, b in zip(again.encode(TEXTS), tokenizer.encode(TEXTS), strict=True))


def test_an_empty_text_is_one_end_of_text_token(tmp_path):
    built, names = bytes_of_a_decoder()
    PreTrainedTokenizerFast(tokenizer_object=built, **names).save_pretrained(tmp_path)
    assert TransformersTokenizer(str(tmp_path)).encode(["", "a"])[0].tolist() == [1]


@pytest.mark.parametrize("clean", ["none", "ftfy"])
def test_transformers_reads_xlmrs_saved_vocabulary_as_sentencepiece_does(squares, tmp_path, clean):
    tokenizer = XlmrTokenizer(squares / "bitext")
    tokenizer.save(tmp_path)
    save_as_text(tmp_path)
    assert not list(Path(tmp_path).glob("*.model"))
    texts = [
        *TEXTS,
        "red  square",
        " red\n",
        "“red”",
        "schÃ¶n &amp;amp; gut",
        "a\u200bb",
        "\uff52ed",
        "e\u0301",
        "",
        " ",
    ]
    cleaner = CLEANERS[clean] or str
    cleaned = [cleaner(text) for text in texts]
    found = TransformersTokenizer(str(tmp_path)).encode(cleaned)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in tokenizer.encode(cleaned)]
