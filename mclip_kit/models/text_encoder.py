"""The multilingual text encoder: XLM-R or another encoder of transformers, with its tokenizer."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaXLConfig,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from mclip_kit import layout
from mclip_kit.data.batching import pad
from mclip_kit.data.tokenizer import BOS, EOS, MODEL_FILE, PAD, XlmrTokenizer
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import follow_umask
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.hub import MissingWeights, hub_answers, quiet_transformers
from mclip_kit.models.model_folder import check_part
from mclip_kit.models.safe_load import UNFIT, plain_values, refusal
from mclip_kit.models.transformers_tokenizer import TransformersTokenizer
from mclip_kit.storage import fetch

LEAK = 1e-2
"""Largest change of a text's states by padding, as a share of the largest state; float32 changes them by 1e-5."""
Tokenizer = XlmrTokenizer | TransformersTokenizer


class Encoder(nn.Module):
    """Token ids to token states, without a pooler.

    Attributes:
        model: a transformers encoder; ids (B, T) and mask (B, T) to states (B, T, H).
        tokenizer: texts to ids.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        # decoders would keep keys and values of every layer for a next token
        self._options = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}

    @property
    def width(self) -> int:
        """Hidden width H."""
        return int(self.config.hidden_size)

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.model.config

    def config_for_hash(self) -> dict[str, Any]:
        """The config as JSON values, see `config_for_hash`."""
        return config_for_hash(self.config)

    @property
    def positions(self) -> int:
        """Longest input in tokens. XLM-R's position table is used from row PAD + 1 on, BERT's from row 0 on."""
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        unused = getattr(table, "padding_idx", None)
        limit = getattr(self.config, "max_position_embeddings", 512)
        if limit < 1:  # XLNet has no limit
            return self.tokenizer.longest or 512
        rows = limit - (0 if unused is None else unused + 1)
        return min(rows, self.tokenizer.longest or rows)

    def pad(self, tokens: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Right-padded ids (B, T) and mask (B, T), int64, on the encoder's device."""
        ids_BT, mask_BT = pad(tokens, self.tokenizer.pad)
        device = next(self.parameters()).device
        return ids_BT.to(device), mask_BT.to(device)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """States (B, T, H) of the last layer."""
        states: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT, **self._options).last_hidden_state
        return states

    def save(self, folder: Path) -> None:
        """Write a transformers folder, tokenizer included."""
        with quiet_transformers():
            self.model.save_pretrained(folder)  # type: ignore[operator]
            follow_umask(folder)
            self.tokenizer.save(folder)


def config_for_hash(config: Any) -> dict[str, Any]:
    """A transformers config as JSON values: for the key of cached features.

    Keys that leave the outputs as they are, are left out.
    """
    passing = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")
    return {key: value for key, value in config.to_dict().items() if key not in passing}


def xlmr_config(
    width: int,
    layers: int,
    heads: int,
    ffn: int,
    dropout: float,
    vocabulary: int,
    position_rows: int,
    attention_dropout: float | None = None,
    kind: type[XLMRobertaConfig] | type[XLMRobertaXLConfig] = XLMRobertaConfig,
    **options: Any,
) -> Any:
    """XLM-R's config at other sizes: its special ids, one token type, its LayerNorm epsilon.

    Args:
        width: hidden width H.
        ffn: width of the feed-forward layers.
        vocabulary: rows of the word table.
        position_rows: rows of the position table; a text has at most PAD + 1 tokens fewer.
        attention_dropout: None: `dropout`.
        kind: the config class; XLM-R XL's for encoders that normalise first.
        options: other arguments of the class, under transformers' names; they replace those set here.
    """
    fixed = {
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
    }
    return kind(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout if attention_dropout is None else attention_dropout,
        max_position_embeddings=position_rows,
        **(fixed | options),
    )


def new_encoder(
    layers: int, width: int, heads: int, ffn: int, dropout: float, positions: int, tokenizer: XlmrTokenizer
) -> Encoder:
    """A new XLM-R of the given sizes with random weights, for the tokenizer's vocabulary."""
    config = xlmr_config(width, layers, heads, ffn, dropout, tokenizer.vocabulary, positions + PAD + 1)
    return Encoder(XLMRobertaModel(config, add_pooling_layer=False), tokenizer)


def pretrained_encoder(name: str) -> Encoder:
    """A transformers encoder by name or folder, in float32, with XLM-R's tokenizer or its own.

    Raises:
        MissingWeights: the encoder is neither in the cache nor on the hub.
        CheckpointError: weights are missing or do not fit the config, or it is not a text encoder.
    """
    local = Path(name).is_dir()
    local_files_only = local or not hub_answers()
    try:
        with plain_values(), quiet_transformers():
            model, report = _load(name, local_files_only)
            tokenizer = tokenizer_of(name, model.config, local_files_only)
    except UNFIT as error:
        if isinstance(error, OSError) and not local:
            raise MissingWeights((f"encoder hf:{name}", "encoder: hf:DIR or fairseq:DIR")) from None
        why = refusal(error) or f"transformers cannot load it: {first_line(error)}"
        raise CheckpointError(f"encoder hf:{name}: {why}") from None
    if report["missing_keys"]:  # transformers would fill them with random weights
        raise CheckpointError(f"encoder hf:{name}: its weights lack {min(report['missing_keys'])}")
    if report["mismatched_keys"]:  # these too
        raise CheckpointError(
            f"encoder hf:{name}: its weights do not fit its config: {min(report['mismatched_keys'])[0]}"
        )
    encoder = Encoder(model, tokenizer)
    _try_texts(encoder, name)
    return encoder


def _try_texts(encoder: Encoder, name: str) -> None:
    """Run short texts once: some models load, but do not give states of tokens, whatever else is in the batch."""
    kind = encoder.config.model_type
    alone_TH, together_TH = _first_states(encoder, name, ["a"]), _first_states(encoder, name, ["a", "a b c d e f"])
    _first_states(encoder, name, [""])
    if (alone_TH - together_TH).abs().max() > LEAK * alone_TH.abs().max():
        raise CheckpointError(
            f"encoder hf:{name}: a {kind} gives a text other states if a longer one is in its batch, as it reads the "
            "padding; give another encoder"
        )


def _first_states(encoder: Encoder, name: str, texts: list[str]) -> Tensor:
    """States (T, H) of the first text's tokens, of a batch of these texts."""
    kind = encoder.config.model_type
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(texts, encoder.positions))
    try:
        with evaluating(encoder):
            states_BTH = encoder(ids_BT, mask_BT)
    except UNFIT as error:
        why = first_line(error)
        raise CheckpointError(f"encoder hf:{name}: a {kind} that does not encode a short text: {why}") from None
    if states_BTH.shape != (*ids_BT.shape, encoder.width):
        raise CheckpointError(
            f"encoder hf:{name}: a {kind} gives states of shape {tuple(states_BTH.shape)} for ids of shape "
            f"{tuple(ids_BT.shape)} and width {encoder.width}; give an encoder with one state a token"
        )
    return states_BTH[0, : int(mask_BT[0].sum())]


def is_causal(encoder: Encoder) -> bool:
    """Whether a token's state depends on the tokens before it alone, as in decoders (Qwen, Gemma, Llama)."""
    words = [token for token in range(encoder.tokenizer.vocabulary) if token != encoder.tokenizer.pad][-3:]
    ids_BT = torch.tensor([[words[0], other] for other in words[1:]], device=next(encoder.parameters()).device)
    with evaluating(encoder):
        states_BTH = encoder(ids_BT, torch.ones_like(ids_BT))
    return torch.allclose(states_BTH[0, 0], states_BTH[1, 0], rtol=0, atol=1e-7)


def encoder_within(folder: Path) -> Encoder:
    """The encoder of a folder: a transformers folder, or a model folder or translator folder, which contain one.

    Raises:
        CheckpointError: the folder contains no encoder.
    """
    inner = fetch(folder) / layout.ENCODER
    place = inner if inner.is_dir() else folder
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{folder}: contains no encoder; give a transformers folder or a model folder")
    check_part(place)
    return pretrained_encoder(str(place))


def _load(name: str, local_files_only: bool) -> tuple[nn.Module, dict[str, Any]]:
    source = {"trust_remote_code": False, "local_files_only": local_files_only}  # by default it offers to run code
    config = AutoConfig.from_pretrained(name, **source)
    kind = _kind(name, config)
    pooler = "add_pooling_layer" in signature((kind or MODEL_MAPPING[type(config)]).__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if pooler else {}  # nothing here reads one
    options |= source | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= {"is_encoder_decoder": False} if kind else {}
    options["adapter_kwargs"] = {"local_files_only": local_files_only}  # transformers 5 does not pass it on by itself
    loaded: tuple[nn.Module, dict[str, Any]] = (kind or AutoModel).from_pretrained(name, dtype=torch.float32, **options)
    return loaded


def _kind(name: str, config: Any) -> Any:
    """transformers' class for the encoder alone of an encoder-decoder (T5, mT5, UMT5), as of its encoder's folder.

    Returns:
        None: the model is an encoder, or a decoder that is read as one.
    Raises:
        CheckpointError: it is none, or transformers has no class for its encoder alone.
    """
    kind = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    wide = hasattr(config, "hidden_size")  # T5Gemma has two widths, one a part
    if kind is not None and kind.__name__.endswith("EncoderModel") and wide:
        return kind
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"encoder hf:{name}: a {config.model_type} has a decoder, and transformers has no class for its encoder "
            "alone; give an encoder, such as XLM-R, or a T5, mT5 or UMT5"
        )
    # an image model, or one of several towers, has no vocabulary or no width of its own
    if type(config) not in MODEL_MAPPING or not hasattr(config, "vocab_size") or not wide:
        raise CheckpointError(f"encoder hf:{name}: a {config.model_type} is not a text encoder")
    return None


def tokenizer_of(name: str, config: Any, local_files_only: bool) -> Tokenizer:
    """XLM-R's from its SentencePiece model if the encoder uses that one, else the encoder's own."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    pieces = cached_file(name, MODEL_FILE, local_files_only=local_files_only, **quiet)
    described = get_tokenizer_config(name, local_files_only=local_files_only)
    kind = described.get("tokenizer_class") or config.model_type
    own = pieces is None or not kind.lower().replace("-", "").startswith("xlmroberta")
    tokenizer: Tokenizer = TransformersTokenizer(name, local_files_only) if own else XlmrTokenizer(pieces)
    if tokenizer.vocabulary > config.vocab_size:
        raise CheckpointError(f"encoder hf:{name}: {tokenizer.vocabulary} ids do not fit {config.vocab_size} word rows")
    return tokenizer
