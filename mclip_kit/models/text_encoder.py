"""The multilingual text encoder: XLM-R or another encoder of transformers, with its tokenizer."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
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
from mclip_kit.models.hub import MissingWeights, hub_answers
from mclip_kit.models.safe_load import UNFIT


class TransformersTokenizer:
    """An encoder's own tokenizer, loaded by transformers (WordPiece, BPE, ...), with the methods of XlmrTokenizer.

    Args:
        name: a name on the hub, or a folder.
        local_files_only: do not ask the hub.
    Raises:
        CheckpointError: the encoder has no tokenizer, or a tokenizer without a padding token.
    """

    def __init__(self, name: str, local_files_only: bool = False) -> None:
        try:
            self.hf = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local_files_only)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"encoder hf:{name}: has no tokenizer: {first_line(error)}") from None
        if self.hf.vocab_size <= len(self.hf.all_special_tokens):  # without files transformers builds an empty one
            raise CheckpointError(f"encoder hf:{name}: has no tokenizer, neither {MODEL_FILE} nor another")
        if self.hf.pad_token_id is None:
            raise CheckpointError(f"encoder hf:{name}: its tokenizer has no padding token")
        self.pad = int(self.hf.pad_token_id)
        self.longest = int(self.hf.model_max_length) if self.hf.model_max_length < 2**31 else None

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return len(self.hf)

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[np.ndarray]:
        """Ids of each text with its special tokens, int32 (T,); texts beyond `max_tokens` lose their last pieces."""
        limit = {"truncation": True, "max_length": max_tokens} if max_tokens else {}
        ids = self.hf(list(texts), return_attention_mask=False, **limit)["input_ids"] if len(texts) else []
        return [np.asarray(text, np.int32) for text in ids]

    def pieces(self) -> list[str]:
        """Empty: no fairseq dictionary fits this tokenizer, so fairseq-binarised text is tokenised again."""
        return []

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.hf.save_pretrained(folder)


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

    @property
    def width(self) -> int:
        """Hidden width H."""
        return int(self.config.hidden_size)

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.model.config

    def config_for_hash(self) -> dict[str, Any]:
        """The config as JSON values without keys that leave the outputs as they are: for the key of cached features."""
        passing = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")
        return {key: value for key, value in self.config.to_dict().items() if key not in passing}

    @property
    def positions(self) -> int:
        """Longest input in tokens. XLM-R's position table is used from row PAD + 1 on, BERT's from row 0 on."""
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        unused = getattr(table, "padding_idx", None)
        rows = getattr(self.config, "max_position_embeddings", 512) - (0 if unused is None else unused + 1)
        return min(rows, self.tokenizer.longest or rows)

    def pad(self, tokens: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Right-padded ids (B, T) and mask (B, T), int64, on the encoder's device."""
        ids_BT, mask_BT = pad(tokens, self.tokenizer.pad)
        device = next(self.parameters()).device
        return ids_BT.to(device), mask_BT.to(device)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """States (B, T, H) of the last layer."""
        states: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return states

    def save(self, folder: Path) -> None:
        """Write a transformers folder, tokenizer included."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        follow_umask(folder)
        self.tokenizer.save(folder)


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
        model, report = _load(name, local_files_only)
        tokenizer = _tokenizer(name, model.config, local_files_only)
    except UNFIT as error:
        if isinstance(error, OSError) and not local:
            raise MissingWeights((f"encoder hf:{name}", "encoder: hf:DIR or fairseq:DIR")) from None
        raise CheckpointError(f"encoder hf:{name}: transformers cannot load it: {first_line(error)}") from None
    if report["missing_keys"]:  # transformers would fill them with random weights
        raise CheckpointError(f"encoder hf:{name}: its weights lack {min(report['missing_keys'])}")
    if report["mismatched_keys"]:  # these too
        raise CheckpointError(
            f"encoder hf:{name}: its weights do not fit its config: {min(report['mismatched_keys'])[0]}"
        )
    return Encoder(model, tokenizer)


def encoder_within(folder: Path) -> Encoder:
    """The encoder of a folder: a transformers folder, or a model folder or translator folder, which contain one.

    Raises:
        CheckpointError: the folder contains no encoder.
    """
    inner = folder / layout.ENCODER
    place = inner if inner.is_dir() else folder
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{folder}: contains no encoder; give a transformers folder or a model folder")
    return pretrained_encoder(str(place))


def _load(name: str, local_files_only: bool) -> tuple[nn.Module, dict[str, Any]]:
    source = {"trust_remote_code": False, "local_files_only": local_files_only}  # by default it offers to run code
    config = AutoConfig.from_pretrained(name, **source)
    if config.is_encoder_decoder:
        raise CheckpointError(f"encoder hf:{name}: a {config.model_type} has a decoder; give an encoder")
    if not hasattr(config, "vocab_size"):  # an image model, or one of several towers
        raise CheckpointError(f"encoder hf:{name}: a {config.model_type} is not a text encoder")
    pooler = "add_pooling_layer" in signature(MODEL_MAPPING[type(config)].__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if pooler else {}  # nothing here reads one
    options |= source | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options["adapter_kwargs"] = {"local_files_only": local_files_only}  # transformers 5 does not pass it on by itself
    loaded: tuple[nn.Module, dict[str, Any]] = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
    return loaded


def _tokenizer(name: str, config: Any, local_files_only: bool) -> Tokenizer:
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
