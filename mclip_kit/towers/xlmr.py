"""The multilingual text encoder: transformers' XLM-R, new or pretrained, with its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, XLMRobertaConfig, XLMRobertaModel
from transformers.utils import cached_file

from mclip_kit.data.tokenizer import BOS, EOS, MODEL_FILE, PAD, XlmrTokenizer
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.towers.hub import MissingWeights, look

WITH_POOLER = ("xlm-roberta", "xlm-roberta-xl", "roberta", "bert", "camembert")  # one that nothing here reads


class Encoder(nn.Module):
    """Token ids to token states, without a pooler.

    Attributes:
        model: a transformers encoder; ids (B, T) and mask (B, T) to states (B, T, H).
        tokenizer: texts to ids.
    """

    def __init__(self, model: nn.Module, tokenizer: XlmrTokenizer) -> None:
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

    @property
    def positions(self) -> int:
        """Longest input in tokens: XLM-R's table starts at pad + 1."""
        return int(self.config.max_position_embeddings) - PAD - 1

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """States (B, T, H) of the last layer."""
        states: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return states

    def save(self, folder: Path) -> None:
        """Write a transformers folder with the SentencePiece model beside."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        (folder / MODEL_FILE).write_bytes(self.tokenizer.path.read_bytes())


def new_encoder(
    layers: int, width: int, heads: int, ffn: int, dropout: float, positions: int, tokenizer: XlmrTokenizer
) -> Encoder:
    """A new XLM-R of the given sizes with random weights, for the tokenizer's vocabulary."""
    config = XLMRobertaConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=positions + PAD + 1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return Encoder(XLMRobertaModel(config, add_pooling_layer=False), tokenizer)


def pretrained_encoder(name: str) -> Encoder:
    """A transformers encoder by name or folder, in float32.

    Raises:
        CheckpointError: it is neither here nor to be had, or it brings no SentencePiece model.
    """
    local = Path(name).is_dir()
    if not local:
        look()
    try:
        options = {"add_pooling_layer": False} if AutoConfig.from_pretrained(name).model_type in WITH_POOLER else {}
        model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
        pieces = Path(name, MODEL_FILE) if local else Path(str(cached_file(name, MODEL_FILE)))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and not local:
            raise MissingWeights((f"encoder hf:{name}", "encoder: hf:DIR")) from None
        raise CheckpointError(f"encoder hf:{name}: transformers cannot load it: {first_line(error)}") from None
    if report["missing_keys"]:  # transformers would go on with random weights
        raise CheckpointError(f"encoder hf:{name}: its weights lack {min(report['missing_keys'])}")
    if not pieces.is_file():
        raise CheckpointError(f"{pieces}: missing; an encoder folder brings its SentencePiece model")
    return Encoder(model, XlmrTokenizer(pieces))
