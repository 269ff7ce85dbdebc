"""The whole model, and the folder it lives in.

config.json                what follows, and how the parts fit together
clip/                      an open_clip folder: image tower, teacher's text tower, preprocessing
encoder/                   a transformers folder with its SentencePiece model
projector.safetensors      projector and clip projector
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mclip_kit import __version__
from mclip_kit.errors import CheckpointError
from mclip_kit.files import write_json, write_whole
from mclip_kit.models.clip import Clip, build_clip
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.projectors import build_projector
from mclip_kit.models.text_encoder import Encoder, pretrained_encoder
from mclip_kit.models.translator import Decoder

FORMAT = 1


class MultilingualClip(nn.Module):
    """Three embeddings of one space: image, teacher text, student text.

    The attributes are the tower names of a recipe: `image`, `teacher_text`, `encoder`, `projector`, `clip_projector`.
    `trained_languages` are those that the student was trained on, `made_from` says from which encoder; `sources` says
    what a recipe calls a tower's weights. While the encoder learns to translate there is a `decoder`; it is not saved.
    """

    def __init__(self, clip: Clip, encoder: Encoder, projector: dict[str, Any], clip_projector: str = "none") -> None:
        """
        Args:
            clip: the given CLIP.
            encoder: the multilingual encoder.
            projector: arguments of `build_projector` besides config and width.
            clip_projector: `none` (the space is CLIP's, D = E) or `linear` (one bias-free map E -> H, D = H: mCLIP).
        """
        super().__init__()
        self.clip = [clip]  # in a list: its towers are this module's own, and registered once
        self.image: nn.Module = clip.model.visual  # type: ignore[assignment]
        self.teacher_text: nn.Module = clip.model.text  # type: ignore[assignment]
        self.teacher_scale: Tensor
        self.register_buffer("teacher_scale", clip.model.get_parameter("logit_scale").detach().clone())
        self.encoder = encoder
        self.decoder: Decoder | None = None
        self.settings = {"projector": projector, "clip_projector": clip_projector}
        self.trained_languages: list[str] = []
        self.made_from = ""
        self.sources: dict[str, str] = {}
        linear = clip_projector == "linear"
        self.width = encoder.width if linear else clip.width
        self.projector = build_projector(config=encoder.config, width=self.width, **projector)
        self.clip_projector = nn.Linear(clip.width, self.width, bias=False) if linear else nn.Identity()

    def teacher_tokens(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, T) for the teacher's text tower."""
        return self.clip[0].tokenize(texts)

    def tower_config(self, tower: str) -> dict[str, Any]:
        """The configuration of `image`, `teacher_text` or `encoder`, as plain values."""
        if tower == "encoder":
            return self.encoder.plain_config()
        part = {"image": "vision_cfg", "teacher_text": "text_cfg"}[tower]
        config = self.clip[0].config
        return {key: config.get(key) for key in ("embed_dim", "quick_gelu", part)}

    def student_tokens(self, texts: Sequence[str], max_tokens: int | None = None) -> list[Any]:
        """Ids of each text for the encoder; texts beyond its positions lose their last tokens."""
        room = min(max_tokens or self.encoder.positions, self.encoder.positions)
        return self.encoder.tokenizer.encode(texts, room)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Student embeddings (N, D) of texts in any language, L2-normalised, float32 on the CPU."""
        tokens = self.student_tokens(texts)
        return self._in_batches(tokens, lambda part: self.projector(*self._states(part)), batch_size)

    def _states(self, tokens: Sequence[Any]) -> tuple[Tensor, Tensor]:
        ids_BT, mask_BT = self.encoder.pad(tokens)
        return self.encoder(ids_BT, mask_BT), mask_BT

    def encode_teacher_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """The teacher's own text embeddings (N, D), L2-normalised, float32 on the CPU."""
        run = lambda part: self.clip_projector(self.teacher_text(self.teacher_tokens(part).to(self.device)))  # noqa: E731
        return self._in_batches(texts, run, batch_size)

    def encode_image(self, images: Sequence[Image], batch_size: int = 64) -> Tensor:
        """Image embeddings (N, D) of PIL pictures, L2-normalised, float32 on the CPU."""

        def run(part: Sequence[Image]) -> Tensor:
            pixels_BCHW = torch.stack([self.clip[0].transform(image) for image in part])
            projected: Tensor = self.clip_projector(self.image(pixels_BCHW.to(self.device)))
            return projected

        return self._in_batches(images, run, batch_size)

    def _in_batches(self, items: Sequence[Any], run: Any, size: int) -> Tensor:
        with evaluating(self):
            parts = [F.normalize(run(items[i : i + size]).float(), dim=-1).cpu() for i in range(0, len(items), size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def save(self, folder: str | Path) -> None:
        """Write the model folder; config.json comes last, so a folder that has one is whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        self.clip[0].model.get_parameter("logit_scale").data.copy_(self.teacher_scale)
        self.clip[0].save(folder / "clip")
        self.encoder.save(folder / "encoder")
        state = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items() if "projector." in name}
        with write_whole(folder / "projector.safetensors") as temporary:
            save_file(state, temporary, {"format": "pt"})
        facts = {"trained_languages": self.trained_languages, "made_from": self.made_from}
        write_json(
            folder / "config.json", {"format": FORMAT, "tool": f"mclip_kit {__version__}", **self.settings, **facts}
        )


def load(folder: str | Path) -> MultilingualClip:
    """Load a model folder, ready to encode.

    Raises:
        CheckpointError: it is no model folder, or it is damaged.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise CheckpointError(f"{folder}: model format {settings['format']}, this version reads {FORMAT}")
        facts = settings["trained_languages"], settings["made_from"]
        parts = settings["projector"], settings["clip_projector"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: missing; {folder} is not a whole model folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: not that of a model folder ({error})") from None
    clip = build_clip(f"local-dir:{folder / 'clip'}")
    if not (folder / "encoder").is_dir():  # transformers would ask the hub for it
        raise CheckpointError(f"{folder / 'encoder'}: missing; {folder} is not a whole model folder")
    encoder = pretrained_encoder(str(folder / "encoder"))
    try:
        model = MultilingualClip(clip, encoder, *parts)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: no such projector ({error})") from None
    model.trained_languages, model.made_from = facts
    _load_projectors(model, folder / "projector.safetensors")
    return model.eval()


def _load_projectors(model: MultilingualClip, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {path.parent} is not a whole model folder")
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    own = {name: tensor for name, tensor in model.state_dict().items() if "projector." in name}
    wrong = sorted(
        name
        for name in own.keys() | state.keys()
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if wrong:
        raise CheckpointError(f"{path}: does not fit config.json: {wrong[0]}")
    model.load_state_dict(state, strict=False)
