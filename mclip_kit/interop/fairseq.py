"""fairseq's XLM-R folder, read and written: model.pt, dict.txt and sentencepiece.bpe.model.

fairseq's own loader is not used: it fails under torch's safe default, and on files with only `args` and `model`.
Weights have names of two styles: `encoder.sentence_encoder.*` with separate q, k, v, and the older
`decoder.sentence_encoder.*` with one `in_proj_weight` for all three.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaXLConfig, XLMRobertaXLModel

from mclip_kit.data.fairseq_io import read_dictionary, write_dictionary
from mclip_kit.data.tokenizer import BOS, EOS, MODEL_FILE, PAD, UNK, XlmrTokenizer
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import write_whole
from mclip_kit.interop.card import Export
from mclip_kit.models.safe_load import UNFIT, StateDict, named_tensors, read_pickle
from mclip_kit.models.text_encoder import Encoder, xlmr_config

SHARED = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
POST_NORM = {**SHARED, "self_attn_layer_norm": "attention.output.LayerNorm", "final_layer_norm": "output.LayerNorm"}
PRE_NORM = {**SHARED, "self_attn_layer_norm": "attention.self_attn_layer_norm", "final_layer_norm": "LayerNorm"}
"""Parts of a layer: fairseq -> transformers. XLM-R base and large are post-norm, XL and XXL pre-norm."""

CARD = Export(
    *("fairseq", "fairseq", "ve-fairseq"),
    """
from fairseq.models.roberta import XLMRModel
encoder = XLMRModel.from_pretrained("{folder}").eval()
states = encoder.extract_features(encoder.encode("ein Hund"))
""",
    ["It has the encoder, without the projector: its states are no CLIP embeddings. The masked-word head is made up."],
    {},
    ("fairseq", "feature-extraction"),
    encoder_only=True,
)
"""What the card of an exported folder says."""


def read_fairseq(path: Path) -> tuple[Path, dict[str, Any], StateDict]:
    """Read a fairseq XLM-R checkpoint.

    Args:
        path: the folder, or the checkpoint in it; also as `.xz`.
    Returns:
        The checkpoint's path, its model options, and its weights under fairseq's current names.
    Raises:
        CheckpointError: the file is missing or damaged, or it is not an XLM-R.
    """
    if path.is_dir():
        found = [path / name for name in ("model.pt", "model.pt.xz") if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path / 'model.pt'}: missing; fairseq: takes a folder with model.pt and dict.txt")
        path = found[0]
    content = read_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path}: not a fairseq checkpoint: it has no key `model`")
    return path, model_options(content), sentence_encoder(named_tensors(content["model"], path), str(path))


def model_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options: `args` of older checkpoints, `cfg.model` of newer ones."""
    return _as_dict(content.get("args")) or _as_dict(_as_dict(content.get("cfg")).get("model"))


def _as_dict(options: Any) -> dict[str, Any]:
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    return options if isinstance(options, dict) else {}


def sentence_encoder(model: Mapping[str, Tensor], where: str) -> StateDict:
    """The encoder's weights in float32 under fairseq's current names, without their prefix.

    Args:
        model: all weights of a checkpoint.
        where: the file, for messages.
    Raises:
        CheckpointError: there are no weights of an XLM-R.
    """
    state: StateDict = {}
    for name, tensor in model.items():
        match = re.fullmatch(r"(?:.*\.)?(?:encoder|decoder)\.sentence_encoder\.(.+)", name)
        if match and not match[1].endswith(("version", "_float_tensor")):
            state.update(_current(match[1], tensor))
    for name in (
        "layers.0.fc1.weight",
        "embed_tokens.weight",
        "embed_positions.weight",
    ):  # the sizes are read from these
        if name not in state or state[name].dim() != 2:
            raise CheckpointError(f"{where}: contains no XLM-R: no matrix is named *.sentence_encoder.{name}")
    return state


def _current(name: str, tensor: Tensor) -> StateDict:
    name = name.replace("emb_layer_norm.", "layernorm_embedding.")
    fused = re.fullmatch(r"(.+self_attn\.)in_proj_(weight|bias)", name)
    if fused:
        parts = zip("qkv", tensor.float().chunk(3), strict=True)
        return {f"{fused[1]}{letter}_proj.{fused[2]}": part.clone() for letter, part in parts}
    return {name: tensor.float()}


def build_encoder(
    state: StateDict, options: Mapping[str, Any], pieces: Sequence[str], tokenizer: XlmrTokenizer, where: str
) -> torch.nn.Module:
    """transformers' XLM-R with fairseq's weights; XLM-R XL if the layers are pre-norm.

    The rows of the word table are sorted into the order of the tokenizer's SentencePiece model, so that ids are the
    same everywhere. A piece that the dictionary lacks gets the row of `<unk>`, as in fairseq.

    Args:
        state: from `sentence_encoder`.
        options: the model's options; `encoder_attention_heads` and the dropouts are used.
        pieces: the entries of dict.txt, in order; the word table has 5 more rows: 4 special tokens and `<mask>`.
        where: the file, for messages.
    Raises:
        CheckpointError: the weights are not an XLM-R's, or do not fit the dictionary.
    """
    state = dict(state)
    words = state["embed_tokens.weight"]
    if len(words) != len(pieces) + 5:
        raise CheckpointError(f"{where}: {len(words)} word rows do not fit a dictionary of {len(pieces)} + 5 entries")
    state["embed_tokens.weight"] = words[_word_rows(pieces, tokenizer)]
    try:
        config = _config(state, options, where)
        model = XLMRobertaXLModel if isinstance(config, XLMRobertaXLConfig) else XLMRobertaModel
        encoder = model(config, add_pooling_layer=False)
    except UNFIT as error:
        raise CheckpointError(f"{where}: transformers cannot build its encoder: {first_line(error)}") from None
    weights = to_transformers(state, type(config))
    weights["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    own = encoder.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        raise CheckpointError(f"{where}: not the weights of an XLM-R: {wrong[0]}")
    encoder.load_state_dict(weights)
    return encoder


def to_transformers(state: StateDict, config: type[XLMRobertaConfig] | type[XLMRobertaXLConfig]) -> StateDict:
    """Rename an encoder's weights from fairseq's current names; unknown names stay as they are."""
    xl = config is XLMRobertaXLConfig
    names = {
        "embed_tokens": "embeddings.word_embeddings",
        "embed_positions": "embeddings.position_embeddings",
        **({"layer_norm": "encoder.LayerNorm"} if xl else {"layernorm_embedding": "embeddings.LayerNorm"}),
    }
    renamed = {}
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", part)
        if layer:
            part = f"encoder.layer.{layer[1]}.{(PRE_NORM if xl else POST_NORM).get(layer[2], layer[2])}"
        renamed[f"{names.get(part, part)}.{kind}"] = tensor
    return renamed


def _word_rows(pieces: Sequence[str], tokenizer: XlmrTokenizer) -> Tensor:
    """For each id of the tokenizer, its row in fairseq's word table."""
    row = {piece: index for index, piece in enumerate(pieces, UNK + 1)}
    known = [row.get(piece, UNK) for piece in tokenizer.pieces()]
    return torch.tensor([BOS, PAD, EOS, UNK, *known, len(pieces) + 4])


def layers(state: StateDict) -> int:
    """The number of layers, from names such as `layers.11.fc1.bias`."""
    numbers = (re.match(r"layers\.(\d+)\.", name) for name in state)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def _config(state: StateDict, options: Mapping[str, Any], where: str) -> XLMRobertaConfig | XLMRobertaXLConfig:
    heads, width = options.get("encoder_attention_heads"), state["embed_tokens.weight"].shape[1]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(f"{where}: its options have no valid number of attention heads (encoder_attention_heads)")
    if options.get("activation_fn", "gelu") != "gelu":
        raise CheckpointError(f"{where}: activation {options['activation_fn']} is not supported, only gelu")
    return xlmr_config(
        width=width,
        layers=layers(state),
        heads=heads,
        ffn=len(state["layers.0.fc1.weight"]),
        dropout=options.get("dropout", 0.1),
        vocabulary=len(state["embed_tokens.weight"]),
        position_rows=len(state["embed_positions.weight"]),
        attention_dropout=options.get("attention_dropout", 0.1),
        kind=XLMRobertaXLConfig if "layer_norm.weight" in state else XLMRobertaConfig,
    )


def read_folder(path: Path) -> tuple[torch.nn.Module, XlmrTokenizer]:
    """The encoder and the tokenizer of a fairseq XLM-R folder, or of a checkpoint in one.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    checkpoint, options, state = read_fairseq(path)
    tokenizer = XlmrTokenizer(checkpoint.parent / MODEL_FILE)
    pieces = read_dictionary(checkpoint.parent / "dict.txt")
    return build_encoder(state, options, pieces, tokenizer, str(checkpoint)), tokenizer


def misfit(encoder: Encoder) -> str | None:
    """Why an encoder cannot be written as a fairseq folder; None if it can."""
    if type(encoder.config) is XLMRobertaConfig and isinstance(encoder.tokenizer, XlmrTokenizer):
        return None
    kind = encoder.config.model_type
    return f"only an XLM-R with its own vocabulary can be written as a fairseq folder, not a {kind}"


def write_folder(encoder: Encoder, folder: Path) -> None:
    """Write an encoder as a fairseq XLM-R folder: model.pt, dict.txt, sentencepiece.bpe.model.

    The options are plain values, so that fairseq's own loader reads the file under torch's safe default. The row of the
    one token type is added to every row of the position table. fairseq's model also has a masked-word head, which our
    encoder lacks; an identity is written for it.

    Raises:
        CheckpointError: the encoder is not an XLM-R, or the folder already has a model.pt.
    """
    config: Any = encoder.config
    tokenizer: Any = encoder.tokenizer
    reason = misfit(encoder)
    if reason:
        raise CheckpointError(reason)
    if (folder / "model.pt").exists():
        raise CheckpointError(f"{folder / 'model.pt'}: exists already; remove it or choose another --out")
    state = {f"encoder.sentence_encoder.{name}": t for name, t in to_fairseq(encoder.model.state_dict()).items()}
    words, width = state["encoder.sentence_encoder.embed_tokens.weight"], config.hidden_size
    head = {
        "weight": words,
        "bias": torch.zeros(len(words)),
        "dense.weight": torch.eye(width),
        "dense.bias": torch.zeros(width),
        "layer_norm.weight": torch.ones(width),
        "layer_norm.bias": torch.zeros(width),
    }
    state |= {f"encoder.lm_head.{name}": tensor for name, tensor in head.items()}
    options = {
        "_name": "roberta_base",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "max_positions": config.max_position_embeddings - PAD - 1,
        "dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "activation_fn": "gelu",
        "layernorm_embedding": True,
        "encoder_normalize_before": False,
    }
    spm = {"_name": "sentencepiece", "sentencepiece_model": MODEL_FILE, "sentencepiece_enable_sampling": False}
    task = {"_name": None, "task": "multilingual_masked_lm", "data": ".", "seed": 1}
    history = {"criterion_name": "masked_lm", "optimizer_name": "adam", "lr_scheduler_state": {}, "num_updates": 0}
    content = {
        "args": None,
        "cfg": {"model": options, "task": task, "bpe": {**spm, "sentencepiece_alpha": None}, "common": {"seed": 1}},
        "model": state,
        "optimizer_history": [history],
        "extra_state": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_dictionary(tokenizer.pieces(), folder / "dict.txt")
    with write_whole(folder / "model.pt") as temporary:
        torch.save(content, temporary)


def to_fairseq(state: StateDict) -> StateDict:
    """Rename a post-norm encoder's weights to fairseq's current names: the inverse of `to_transformers`."""
    parts = {ours: theirs for theirs, ours in POST_NORM.items()}
    tables = {
        "embeddings.word_embeddings": "embed_tokens",
        "embeddings.position_embeddings": "embed_positions",
        "embeddings.LayerNorm": "layernorm_embedding",
    }
    renamed = {}
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", part)
        if layer or part in tables:
            named = f"layers.{layer[1]}.{parts[layer[2]]}" if layer else tables[part]
            renamed[f"{named}.{kind}"] = tensor.detach().cpu().clone()
    renamed["embed_positions.weight"] += state["embeddings.token_type_embeddings.weight"][0].cpu()
    return renamed
