"""Import checkpoints of the official mCLIP code (ACL 2023).

The code is a fork of fairseq. Its checkpoint has, under `model`:

    encoder.dim_proj.weight            the CLIP projector, shared by image and teacher text
    encoder.encoder_adapter.{0,1}.*    the X-projector: post-norm layers over all token states
    encoder.xlmr.*, encoder.clip.*     the frozen towers, if they were saved too

and under `criterion` the learned `it_logit_scale`. A student embedding is the last layer's state at `</s>`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import XLMRobertaConfig

from mclip_kit.data.fairseq_io import read_dictionary
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.interop import fairseq
from mclip_kit.models.clip import from_openai
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import named_tensors, read_pickle
from mclip_kit.models.text_encoder import Encoder

PROJECTOR = "encoder.dim_proj.weight"
ADAPTER, XLMR, CLIP = "encoder.encoder_adapter.", "encoder.xlmr.", "encoder.clip."
UNUSED = ("encoder.version",)
NO_LANGUAGE = "im"  # the code of images in the official language pairs
DROPOUT = 0.3  # of the published X-projector, for checkpoints without this option


class Imported(NamedTuple):
    """What a checkpoint contained."""

    model: MultilingualClip
    temperature: float | None
    """Learned temperature of the image-student_text edge, if the checkpoint has it."""
    remarks: list[str]
    """Lines for the user: where the towers came from, and which weights differ."""


def import_mclip(checkpoint: str | Path, xlmr: str | Path, clip: str | Path | None = None) -> Imported:
    """Turn an official checkpoint into a model; any of the files may be an .xz.

    Args:
        checkpoint: a file that the official code wrote.
        xlmr: the fairseq XLM-R folder (or its checkpoint); its tokenizer is always needed, its weights only if the
            checkpoint has none.
        clip: a CLIP weight file in OpenAI's naming; needed if the checkpoint has no CLIP.
    Raises:
        CheckpointError: a file is missing, damaged, of another kind, or would run code when read.
    """
    content = read_pickle(checkpoint)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or PROJECTOR not in weights:
        raise CheckpointError(f"{checkpoint}: not an mCLIP checkpoint: it has no {PROJECTOR}")
    named_tensors(weights, checkpoint)
    known = (PROJECTOR, ADAPTER, XLMR, CLIP, *UNUSED)
    unknown = sorted(name for name in weights if not name.startswith(known))
    if unknown:
        raise CheckpointError(f"{checkpoint}: has weights that mCLIP's X-projector lacks, such as {unknown[0]}")
    options, remarks = fairseq.model_options(content), list[str]()
    encoder = _encoder(weights, options, Path(xlmr), checkpoint, remarks)
    image_and_text = from_openai(*_clip(weights, clip, checkpoint, remarks))
    layers, blocks = _blocks(weights)
    projector = {"kind": "transformer", "pool": "eos", "layers": layers, "dropout": options.get("dropout", DROPOUT)}
    model = MultilingualClip(image_and_text, encoder, projector, clip_projector="linear")
    try:
        model.projector.load_state_dict(blocks)
        model.clip_projector.load_state_dict({"weight": weights[PROJECTOR].float()})
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: its projectors do not fit its towers: {first_line(error)}") from None
    model.made_from = f"mCLIP's {Path(checkpoint).name}"
    model.trained_languages = _languages(options)
    return Imported(model.eval(), _temperature(content), remarks)


def _encoder(
    weights: Mapping[str, Tensor],
    options: Mapping[str, Any],
    xlmr: Path,
    checkpoint: str | Path,
    remarks: list[str],
) -> Encoder:
    """The frozen XLM-R: from the checkpoint, else from the folder."""
    if not xlmr.exists():
        raise CheckpointError(f"{xlmr}: missing; --xlmr takes a fairseq XLM-R folder")
    folder = xlmr if xlmr.is_dir() else xlmr.parent
    tokenizer, pieces = XlmrTokenizer(folder / MODEL_FILE), read_dictionary(folder / "dict.txt")
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(XLMR)}
    try:
        path, own_options, own = fairseq.read_fairseq(xlmr)
    except CheckpointError:
        if not inside or xlmr.is_file() or any(folder.glob("model.pt*")):
            raise
        path, own_options, own = folder, {}, {}
    if not inside:
        remarks.append(f"XLM-R: from {path}; the checkpoint has none")
        return Encoder(fairseq.build_encoder(own, own_options, pieces, tokenizer, str(path)), tokenizer)
    state = fairseq.sentence_encoder(inside, str(checkpoint))
    remarks.append("XLM-R: from the checkpoint" + _difference(state, own, path))
    built = fairseq.build_encoder(state, own_options or options, pieces, tokenizer, str(checkpoint))
    return Encoder(built, tokenizer)


def _clip(
    weights: Mapping[str, Tensor], clip: str | Path | None, checkpoint: str | Path, remarks: list[str]
) -> tuple[dict[str, Tensor], str]:
    """The frozen CLIP in OpenAI's naming, and where it came from."""
    inside = {name.removeprefix(CLIP): tensor for name, tensor in weights.items() if name.startswith(CLIP)}
    own = read_pickle(clip) if clip else {}
    if inside and not isinstance(own, dict):
        raise CheckpointError(f"{clip}: not a CLIP weight file")
    if not inside and not own:
        raise CheckpointError(f"{checkpoint}: has no CLIP; give its weight file with --clip")
    if not inside:
        remarks.append(f"CLIP: from {clip}; the checkpoint has none")
        return own, str(clip)
    remarks.append("CLIP: from the checkpoint" + _difference(inside, own, clip))
    return inside, str(checkpoint)


def _difference(inside: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path | None) -> str:
    """The end of a remark about a tower that is in the checkpoint and in a file: equal, or how many weights differ."""
    shared = sorted(inside.keys() & own.keys())
    different = [name for name in shared if not _equal(inside[name], own[name])]
    if not shared:
        return "" if not own else f"; {path} has no weight of the same name"
    if different:
        return (
            f"; {path} differs in {len(different)} of {len(shared)} weights, such as {different[0]}, and was not used"
        )
    return f", the same as {path}"


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal in float32: OpenAI's files have some weights in half precision, checkpoints in float32."""
    return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a.float(), b.float())


def _blocks(weights: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    """The number of layers of the X-projector, and its weights under this package's names."""
    own = {name.removeprefix(ADAPTER): tensor for name, tensor in weights.items() if name.startswith(ADAPTER)}
    adapter = {f"layers.{name}": tensor.float() for name, tensor in own.items()}
    renamed = fairseq.to_transformers(adapter, XLMRobertaConfig)
    blocks = {f"blocks.layers.{name.removeprefix('encoder.layer.')}": tensor for name, tensor in renamed.items()}
    return fairseq.layers(adapter), blocks


def _languages(options: Mapping[str, Any]) -> list[str]:
    """The languages of the official option `lang_pairs`, such as im-en,im-de."""
    pairs = options.get("lang_pairs") or []
    names = (pairs.split(",") if isinstance(pairs, str) else pairs) or []
    return sorted({language for pair in names for language in str(pair).split("-")} - {NO_LANGUAGE})


def _temperature(content: Mapping[str, Any]) -> float | None:
    criterion = content.get("criterion")
    scale = criterion.get("it_logit_scale") if isinstance(criterion, dict) else None
    return float(torch.exp(-scale.float())) if isinstance(scale, Tensor) else None
