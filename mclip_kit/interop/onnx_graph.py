"""Towers as ONNX graphs, by torch's exporter, and with 8-bit weights, by onnxruntime.

Shapes: N texts or pictures, T tokens, S picture size, D embedding.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import Tokenizer

OPSET = 18
ONE_FILE = 1_800_000_000
"""Bytes of weights above which they are in a file beside model.onnx; protobuf's limit is 2 GiB."""
OPTIONS: dict[str, Any] = {"op_types_to_quantize": ["MatMul", "Gemm", "Gather"]}
"""What `int8` changes: linear maps and tables. Convolutions with int8 weights are not on onnxruntime's CPU."""


class TextTower(nn.Module):
    """Ids (N, T), int32, padded on the right, to L2-normalised student embeddings (N, D)."""

    def __init__(self, model: MultilingualClip) -> None:
        super().__init__()
        self.encoder, self.projector = model.encoder, model.projector
        self.pad, self.ends_with_padding = model.encoder.tokenizer.pad, ends_with_padding(model.encoder.tokenizer)

    def forward(self, text: Tensor) -> Tensor:
        """Embeddings (N, D)."""
        ids_NT = text.long()
        mask_NT = (ids_NT != self.pad).long()
        if self.ends_with_padding:  # the first padding token is the text's end
            mask_NT = F.pad(mask_NT[:, :-1], (1, 0), value=1)
        return F.normalize(self.projector(self.encoder(ids_NT, mask_NT), mask_NT), dim=-1)


def ends_with_padding(tokenizer: Tokenizer) -> bool:
    """Whether every text ends with the padding's token, as in Qwen3-Embedding, and it is nowhere else in a text.

    Raises:
        ValueError: only some texts end so, or it is elsewhere too: ids do not say where a text ends.
    """
    found = tokenizer.encode(["", "a red apple"])
    ends = {bool(ids[-1] == tokenizer.pad) for ids in found}
    if len(ends) > 1 or any(tokenizer.pad in ids[:-1] for ids in found):
        raise ValueError("the padding's token is part of texts")
    return ends.pop()


class ImageTower(nn.Module):
    """Pixels (N, 3, S, S) to L2-normalised embeddings (N, D)."""

    def __init__(self, model: MultilingualClip) -> None:
        super().__init__()
        self.image, self.clip_projector = model.image, model.clip_projector

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings (N, D)."""
        return F.normalize(self.clip_projector(self.image(image)), dim=-1)


def trace(tower: nn.Module, name: str, example: Tensor, dynamic: dict[int, Any]) -> Any:
    """A tower as a graph of torch's exporter.

    Args:
        tower: one tensor in, one out.
        name: of the input; the output's is left to torch, as readers take the first one.
        example: an input of at least two rows; the graph takes any number.
        dynamic: other axes of any length -> their dimension.
    Raises:
        CheckpointError: torch cannot export it.
    """
    with evaluating(tower), _quiet():
        try:
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                input_names=[name],
                dynamic_shapes=({0: torch.export.Dim("batch"), **dynamic},),
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise CheckpointError(f"onnx: torch cannot export the {name} tower: {first_line(error)}") from None
    assert program is not None
    for node in program.model.graph.all_nodes():  # lines of this machine's Python files
        node.metadata_props.clear()
    return program


def save(program: Any, path: Path, int8: bool) -> None:
    """Write a graph, with its weights in 8 bits if wanted; above `ONE_FILE` bytes they go into PATH.data."""
    outside = sum(weight.const_value.nbytes for weight in program.model.graph.initializers.values()) > ONE_FILE
    if not int8:
        program.save(path, external_data=outside)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic  # the extra `onnx`

    with tempfile.TemporaryDirectory(dir=path.parent) as temporary, _quiet():
        whole = Path(temporary) / "whole.onnx"
        program.save(whole, external_data=outside)
        quantize_dynamic(whole, path, use_external_data_format=outside, weight_type=QuantType.QInt8, **OPTIONS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice to its authors."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
