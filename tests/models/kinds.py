"""Encoders that a user may bring: tiny random weights of transformers' own classes, with a tokenizer each.

`test_encoder_kinds.py` checks what each can do, and `docs/make_encoders.py` writes it into docs/encoders.md.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from mclip_kit.errors import RecipeError
from mclip_kit.interop.export import find
from mclip_kit.models.clip import Clip
from mclip_kit.models.lora import query_value
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import Encoder, is_causal
from mclip_kit.train.layer_decay import layer_scales
from mclip_kit.train.optim import cannot_checkpoint

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "red", "green", "dog", "house", "ein", "roter", "Hund"]]
TEXTS = ["a red dog", "", "ein roter Hund ein roter Hund", "green", " \t\n"]
VOCABULARY = 40
FRAME = "[CLS] $A [SEP]"
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"vocab_size": VOCABULARY, "hidden_size": 16, "pad_token_id": 0, "max_position_embeddings": 48}
T5_SIZES: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5_SIZES |= {"vocab_size": VOCABULARY, "pad_token_id": 0, "decoder_start_token_id": 0, "num_decoder_layers": 1}
XLM_SIZES: dict[str, Any] = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 0, "vocab_size": VOCABULARY}
BART_SIZES: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
BART_SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "vocab_size": VOCABULARY}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CAUSAL = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
GEMMA = CAUSAL | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
DISTIL_SIZES: dict[str, Any] = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "pad_token_id": 0}
DISTIL_SIZES |= {"vocab_size": VOCABULARY, "max_position_embeddings": 48}
MDEBERTA: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
MDEBERTA |= {"position_biased_input": False, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0}
ENDS = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}

Maker = Callable[[], Any]
ENCODERS: dict[str, Maker] = {
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**SIZES, embedding_size=8)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**SIZES)),
    "camembert": lambda: hf.CamembertModel(hf.CamembertConfig(**SIZES)),
    "deberta-v2": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**SIZES, relative_attention=True)),
    "distilbert": lambda: hf.DistilBertModel(hf.DistilBertConfig(**DISTIL_SIZES)),
    "embeddinggemma": lambda: hf.Gemma3TextModel(hf.Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True)),
    "eurobert": lambda: hf.EuroBertModel(hf.EuroBertConfig(**CAUSAL)),
    "jina-embeddings-v3": lambda: hf.JinaEmbeddingsV3Model(hf.JinaEmbeddingsV3Config(**SIZES)),
    "mdeberta-v3": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**SIZES, **MDEBERTA)),
    "nomic-bert": lambda: hf.NomicBertModel(hf.NomicBertConfig(**SIZES)),
    "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**SIZES, embedding_size=8)),
    "ernie": lambda: hf.ErnieModel(hf.ErnieConfig(**SIZES)),
    "flaubert": lambda: hf.FlaubertModel(hf.FlaubertConfig(**XLM_SIZES)),
    "modernbert": lambda: hf.ModernBertModel(hf.ModernBertConfig(**SIZES, **ENDS)),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**SIZES)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**SIZES, layer_norm_eps=1e-5)),
    "xlm": lambda: hf.XLMModel(hf.XLMConfig(**XLM_SIZES)),
    "xlm-roberta": lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**SIZES, layer_norm_eps=1e-5)),
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
    "gemma3": lambda: hf.Gemma3TextModel(hf.Gemma3TextConfig(**GEMMA)),
    "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**CAUSAL)),
    "qwen3": lambda: hf.Qwen3Model(hf.Qwen3Config(**CAUSAL)),
    "qwen3-embedding": lambda: hf.Qwen3Model(hf.Qwen3Config(**CAUSAL)),
}
REFUSED: dict[str, tuple[Maker, str]] = {
    "bart": (lambda: hf.BartModel(hf.BartConfig(**BART_SIZES)), "a bart has a decoder"),
    "m2m100": (lambda: hf.M2M100Model(hf.M2M100Config(**BART_SIZES)), "a m2m_100 has a decoder"),
    "marian": (lambda: hf.MarianModel(hf.MarianConfig(**BART_SIZES, pad_token_id=0)), "a marian has a decoder"),
    "mbart": (lambda: hf.MBartModel(hf.MBartConfig(**BART_SIZES)), "a mbart has a decoder"),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(hidden_size=16, num_hidden_layers=1)), "a vit is not a text encoder"),
}
KINDS = (*ENCODERS, *DECODERS)


def save_kind(kind: str, folder: Path) -> Path:
    """A folder of a kind of encoder; tokenizers of decoders add no special tokens, Qwen3-Embedding's adds padding."""
    ends = FRAME if kind in ENCODERS else "$A [PAD]" if kind == "qwen3-embedding" else ""
    return save((ENCODERS | DECODERS)[kind], folder, ends)


def save(maker: Maker, folder: Path, ends: str = FRAME) -> Path:
    """A model with random weights, none of them zero, and a word tokenizer, which puts special tokens around a text."""
    torch.manual_seed(1)
    model = maker()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    if ends:
        marks = [(word, number) for number, word in enumerate(WORDS) if word in ends]
        words.post_processor = processors.TemplateProcessing(single=ends, special_tokens=marks)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    hf.PreTrainedTokenizerFast(tokenizer_object=words, **names, model_max_length=32).save_pretrained(folder)
    return folder


def abilities(encoder: Encoder) -> dict[str, str]:
    """What can be trained of an encoder besides all of it: the layers that get adapters, and yes or no."""
    return {
        "LoRA": _or_no(lambda: ", ".join(query_value(encoder))),
        "layer_decay": _or_no(lambda: "yes" if layer_scales(encoder, 0.5) else "no"),
        "checkpointing": "yes" if cannot_checkpoint(encoder) is None else "no",
    }


def _or_no(what: Callable[[], str]) -> str:
    try:
        return what()
    except RecipeError:
        return "no"


TITLES = {
    "bert": "BERT, mBERT, LaBSE",
    "deberta-v2": "DeBERTa v2",
    "distilbert": "DistilBERT",
    "embeddinggemma": "EmbeddingGemma",
    "eurobert": "EuroBERT",
    "gemma3": "Gemma 3",
    "jina-embeddings-v3": "jina-embeddings-v3",
    "mdeberta-v3": "mDeBERTa v3",
    "modernbert": "ModernBERT, mmBERT",
    "nomic-bert": "Nomic Embed",
    "qwen3": "Qwen3",
    "qwen3-embedding": "Qwen3-Embedding",
    "xlm-roberta": "XLM-R, XLM-V, BGE-M3, multilingual-e5",
    "xlm-roberta-xl": "XLM-R XL",
}
"""Kind -> models of it, where they are better known by another name."""
SHOWN = [kind for kind in KINDS if not ("'s encoder" in kind or "with its head" in kind)]
"""The kinds of the page; the others are the same classes from other folders."""
STUDENTS = {
    "open-clip": ("linear", "mean"),
    "sentence-transformers": ("linear", "mean"),
    "transformers": ("linear", "cls"),
    "onnx": ("linear", "mean"),
    "diffusers": ("altclip", "cls"),
}
"""Format -> the projector of the student that is tried; of a decoder, it pools the last token."""


def students(encoder: Encoder, clip: Clip) -> dict[str, MultilingualClip]:
    """Format -> the student that is tried with it."""
    causal = is_causal(encoder)
    chosen = {form: (kind, "eos" if causal else pool) for form, (kind, pool) in STUDENTS.items()}
    made = {}
    for kind, pool in dict.fromkeys(chosen.values()):
        torch.manual_seed(1)
        made[kind, pool] = MultilingualClip(clip, encoder, {"kind": kind, "pool": pool}).eval()
    return {form: made[how] for form, how in chosen.items()}


def refusals(models: Mapping[str, MultilingualClip]) -> dict[str, str | None]:
    """Format -> why its student does not leave in it; None: it does. No model is called by its name."""
    found = {}
    for form, model in models.items():
        kind, reason = model.encoder.config.model_type, find(form).misfit(model, find(form).options)
        general = reason and reason.replace(f"a {kind} encoder", "another encoder")
        found[form] = general and general.replace(f"not {kind};", "not another;")
    return found


PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"


def said(heading: str) -> dict[str, dict[str, str]]:
    """A table of docs/encoders.md: row -> column -> what stands there, a letter replaced by its reason."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    reasons = dict(line.removeprefix("- ").split(": ", 1) for line in lines if line.startswith("- "))
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    return {
        row[0]: {key: reasons.get(cell, cell) for key, cell in zip(header[1:], row[1:], strict=True)} for row in rows
    }


def assert_exports(row: dict[str, str], found: dict[str, str | None]) -> None:
    """A row of the page has a difference where a student leaves, and the reason where it does not."""
    for form, reason in found.items():
        if reason is None:
            assert float(row[form]) <= 1e-5, form
        else:
            assert row[form] == reason, form
