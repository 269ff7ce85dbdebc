"""Encoders of transformers that a user may bring: each is built, encodes, is saved and loads again, or is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from mclip_kit.errors import CheckpointError
from mclip_kit.models.projectors import build_projector
from mclip_kit.models.text_encoder import Encoder, is_causal, pretrained_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "red", "green", "dog", "house", "ein", "roter", "Hund"]]
TEXTS = ["a red dog", "", "ein roter Hund ein roter Hund", "green"]
VOCABULARY = 40
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"vocab_size": VOCABULARY, "hidden_size": 16, "pad_token_id": 0, "max_position_embeddings": 48}
T5_SIZES: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5_SIZES |= {"vocab_size": VOCABULARY, "pad_token_id": 0, "decoder_start_token_id": 0, "num_decoder_layers": 1}
XLM_SIZES: dict[str, Any] = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 0, "vocab_size": VOCABULARY}
BART_SIZES: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
BART_SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "vocab_size": VOCABULARY}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CAUSAL = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
ENDS = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}

Maker = Callable[[], Any]
ENCODERS: dict[str, Maker] = {
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**SIZES, embedding_size=8)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**SIZES)),
    "camembert": lambda: hf.CamembertModel(hf.CamembertConfig(**SIZES)),
    "deberta-v2": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**SIZES, relative_attention=True)),
    "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**SIZES, embedding_size=8)),
    "ernie": lambda: hf.ErnieModel(hf.ErnieConfig(**SIZES)),
    "flaubert": lambda: hf.FlaubertModel(hf.FlaubertConfig(**XLM_SIZES)),
    "modernbert": lambda: hf.ModernBertModel(hf.ModernBertConfig(**SIZES, **ENDS)),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**SIZES)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**SIZES)),
    "xlm": lambda: hf.XLMModel(hf.XLMConfig(**XLM_SIZES)),
    "xlm-roberta-xl": lambda: hf.XLMRobertaXLModel(hf.XLMRobertaXLConfig(**SIZES, **NO_DROPOUT)),
    "xlnet": lambda: hf.XLNetModel(hf.XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=24)),
    "t5": lambda: hf.T5Model(hf.T5Config(**T5_SIZES)),
    "mt5": lambda: hf.MT5Model(hf.MT5Config(**T5_SIZES)),
    "mt5 with its head": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5_SIZES)),
    "umt5": lambda: hf.UMT5Model(hf.UMT5Config(**T5_SIZES)),
    "t5's encoder": lambda: hf.T5EncoderModel(hf.T5Config(**T5_SIZES)),
    "mt5's encoder": lambda: hf.MT5EncoderModel(hf.MT5Config(**T5_SIZES)),
    "umt5's encoder": lambda: hf.UMT5EncoderModel(hf.UMT5Config(**T5_SIZES)),
}
DECODERS: dict[str, Maker] = {
    "gemma": lambda: hf.GemmaModel(hf.GemmaConfig(**CAUSAL)),
    "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**CAUSAL)),
    "qwen3": lambda: hf.Qwen3Model(hf.Qwen3Config(**CAUSAL)),
}
REFUSED: dict[str, tuple[Maker, str]] = {
    "bart": (lambda: hf.BartModel(hf.BartConfig(**BART_SIZES)), "a bart has a decoder"),
    "m2m100": (lambda: hf.M2M100Model(hf.M2M100Config(**BART_SIZES)), "a m2m_100 has a decoder"),
    "marian": (lambda: hf.MarianModel(hf.MarianConfig(**BART_SIZES, pad_token_id=0)), "a marian has a decoder"),
    "mbart": (lambda: hf.MBartModel(hf.MBartConfig(**BART_SIZES)), "a mbart has a decoder"),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(hidden_size=16, num_hidden_layers=1)), "a vit is not a text encoder"),
}


def save(maker: Maker, folder: Path, ends: bool = True) -> Path:
    """A model with random weights, none of them zero, and a word tokenizer, with or without special tokens."""
    torch.manual_seed(1)
    model = maker()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    if ends:
        marks = [("[CLS]", 2), ("[SEP]", 3)]
        words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    hf.PreTrainedTokenizerFast(tokenizer_object=words, **names, model_max_length=32).save_pretrained(folder)
    return folder


@torch.no_grad()
def states(encoder: Encoder, texts: list[str]) -> list[Tensor]:
    """The states of each text's tokens, without the padding's."""
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(texts, encoder.positions))
    return [row[mask.bool()] for row, mask in zip(encoder(ids_BT, mask_BT), mask_BT, strict=True)]


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_it_encodes_and_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    maker = (ENCODERS | DECODERS)[kind]
    encoder = pretrained_encoder(str(save(maker, tmp_path / "given", ends=kind in ENCODERS))).eval()
    assert encoder.width == 16
    assert encoder.positions == 32
    assert is_causal(encoder) == (kind in DECODERS)
    together = states(encoder, TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(found, states(encoder, [text])[0], rtol=0, atol=2e-5)
    assert (together[0][-1] - together[3][-1]).abs().max() > 1e-3
    encoder.save(tmp_path / "saved")
    again = pretrained_encoder(str(tmp_path / "saved")).eval()
    assert type(again.model) is type(encoder.model)
    assert all(torch.equal(a, b) for a, b in zip(together, states(again, TEXTS), strict=True))
    for settings in ({"kind": "transformer", "pool": "mean", "layers": 1}, {"kind": "altclip", "pool": "eos"}):
        projector = build_projector(config=encoder.config, width=8, **settings)  # type: ignore[arg-type]
        ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(TEXTS))
        assert projector(encoder(ids_BT, mask_BT), mask_BT).isfinite().all()


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_a_whole_t5_gives_its_encoders_states(kind: str, tmp_path: Path) -> None:
    folder = save(ENCODERS[kind], tmp_path / "given")
    encoder = pretrained_encoder(str(folder)).eval()
    assert not [name for name in encoder.state_dict() if "decoder" in name]
    whole = hf.AutoModel.from_pretrained(folder).eval()
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(TEXTS))
    with torch.no_grad():
        theirs = whole.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        torch.testing.assert_close(encoder(ids_BT, mask_BT), theirs, rtol=0, atol=1e-6)


def test_an_encoder_that_reads_the_padding_is_refused(tmp_path: Path) -> None:
    maker = lambda: hf.ConvBertModel(hf.ConvBertConfig(**SIZES, embedding_size=16))  # noqa: E731
    with pytest.raises(CheckpointError, match="a convbert gives a text other states if a longer one is in its batch"):
        pretrained_encoder(str(save(maker, tmp_path)))


def test_an_empty_text_has_the_end_token_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    encoder = pretrained_encoder(str(save(DECODERS["llama"], tmp_path, ends=False)))
    assert [ids.tolist() for ids in encoder.tokenizer.encode(["", "a"])] == [[3], [4]]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_encoder_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    maker, message = REFUSED[kind]
    with pytest.raises(CheckpointError, match=f"^encoder hf:{tmp_path}: {message}") as error:
        pretrained_encoder(str(save(maker, tmp_path)))
    assert "\n" not in str(error.value)


def test_ids_beyond_the_word_table_are_refused_where_the_vocabulary_has_gaps(tmp_path: Path) -> None:
    save(ENCODERS["bert"], tmp_path)
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "far": VOCABULARY}, unk_token="[UNK]"))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{VOCABULARY + 1} ids do not fit {VOCABULARY} word rows"):
        pretrained_encoder(str(tmp_path))


def test_an_encoder_that_fails_on_short_texts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(ENCODERS["bert"], tmp_path)
    monkeypatch.setattr(hf.BertModel, "forward", lambda *given, **more: torch.zeros(2, 3) + torch.zeros(3, 2))
    with pytest.raises(CheckpointError, match=f"^encoder hf:{tmp_path}: a bert that does not encode a short text: "):
        pretrained_encoder(str(tmp_path))
