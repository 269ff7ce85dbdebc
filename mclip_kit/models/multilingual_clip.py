"""The whole model: encoding, and its folder (`layout.py` lists the files)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mclip_kit import __version__, layout
from mclip_kit.config.model import TextCleaning
from mclip_kit.models.clip import Clip, clip_from_folder
from mclip_kit.models.encoding import (
    Picture,
    Pictures,
    Texts,
    as_pictures,
    as_texts,
    embed_by_length,
    similarity,
    to_pixels,
)
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.model_folder import FORMAT, Dtype, read_config, save_projectors, write_config
from mclip_kit.models.student import Student, building, encoder_of, opened
from mclip_kit.models.text_encoder import Encoder
from mclip_kit.models.translator import Decoder


class MultilingualClip(Student):
    """A CLIP whose space also has a multilingual student: pictures, teacher texts and student texts share it.

    Shapes: N texts or pictures, D width of the shared space, H encoder width, E the CLIP's width, B batch, T tokens.

    >>> text_ND = model.encode_text(["a red apple", "une pomme rouge"])
    >>> image_MD = model.encode_image(picture)
    >>> model.similarity(text_ND, image_MD).shape
    torch.Size([2, 1])

    Attributes:
        image, teacher_text, encoder, projector, clip_projector: the towers, named as in recipes.
        teacher_scale: the CLIP's logit scale.
        decoder: only while the encoder learns to translate; it is not saved.
        settings: arguments of the projectors, as saved in config.json.
        text_cleaning: a key of `CLEANERS`. How pictures become RGB is `clip[0].pictures`.
        trained_languages: language codes that the student was trained on.
        dims: widths below D at which embeddings may be cut, as the student was trained (Matryoshka).
        made_from: the encoder that the student started from.
        sources: tower name -> name of its weights in the recipe.
        width: D.
    """

    def __init__(
        self,
        clip: Clip,
        encoder: Encoder,
        projector: dict[str, Any],
        clip_projector: str = "none",
        text_cleaning: TextCleaning = "none",
    ) -> None:
        """
        Args:
            clip: the given CLIP.
            encoder: the multilingual encoder.
            projector: arguments of `build_projector` except config and width.
            clip_projector: `none` (the space is CLIP's, D = E) or `linear` (one bias-free map E -> H, D = H: mCLIP).
            text_cleaning: what is done to the student's texts; `ftfy`: what open_clip does.
        """
        super().__init__()
        self.clip = [clip]  # in a list, so that its towers are not registered twice
        self.image: nn.Module = clip.model.visual  # type: ignore[assignment]
        self.teacher_text: nn.Module = clip.model.text  # type: ignore[assignment]
        self.teacher_scale: Tensor
        self.register_buffer("teacher_scale", clip.model.get_parameter("logit_scale").detach().clone())
        self.decoder: Decoder | None = None
        self.add_student(encoder, projector, clip_projector, text_cleaning, clip.width)

    def teacher_tokens(self, texts: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        """Ids (B, T) for the teacher's text tower; (B, K, T) in K templates, patterns with {}."""
        forms = [template.replace("{}", text) for text in texts for template in templates or ["{}"]]
        return self.clip[0].tokenize(forms).unflatten(0, (len(texts), len(templates)) if templates else (-1,))

    def tower_config(self, tower: str) -> dict[str, Any]:
        """The config of `image`, `teacher_text` or `encoder`, as JSON values: part of the key of cached features."""
        if tower == "encoder":
            return super().tower_config(tower)
        part, clip = {"image": "vision_cfg", "teacher_text": "text_cfg"}[tower], self.clip[0]
        own = clip.text_facts() if tower == "teacher_text" else {}
        return {key: clip.config.get(key) for key in ("embed_dim", "quick_gelu", part)} | own

    def encode_teacher_text(self, texts: Texts, batch_size: int = 256, dims: int | None = None) -> Tensor:
        """Embeddings of texts by the CLIP's own text tower, which reads the CLIP's language only (mostly English).

        >>> len(model.encode_teacher_text(["red apple", "two dogs"]))
        2

        Args:
            texts: one text or a sequence of N texts.
            batch_size: texts per batch; texts of similar length share a batch.
            dims: as in `encode_text`.
        Returns:
            (N, D), L2-normalised, float32 on the CPU, in the order of `texts`.
        Raises:
            TypeError: an item is not a string.
        """
        listed = as_texts(texts)
        lengths = [len(text) for text in listed]  # characters: the tokenizer pads every text to the context length
        with evaluating(self):
            return embed_by_length(listed, lengths, self._embed_teacher_texts, self.width, batch_size, dims)

    def _embed_teacher_texts(self, texts: Sequence[str]) -> Tensor:
        ids_BT = self.teacher_tokens(texts).to(self.device)
        embedding_BD: Tensor = self.clip_projector(self.teacher_text(ids_BT))
        return embedding_BD

    def encode_image(self, images: Pictures, batch_size: int = 64, dims: int | None = None) -> Tensor:
        """Embeddings of pictures.

        >>> image_ND = model.encode_image(picture)
        >>> len(image_ND)
        1
        >>> picture.save("apple.png")
        >>> len(model.encode_image([picture, "apple.png"]))
        2

        Args:
            images: one picture or a sequence of N: PIL pictures of any mode and size, and paths of files.
            batch_size: pictures per batch; only the files of one batch are open at a time.
            dims: as in `encode_text`.
        Returns:
            (N, D), L2-normalised, float32 on the CPU, in the order of `images`.
        Raises:
            DataError: a file cannot be read as a picture; the message names it.
            TypeError: an item is neither a PIL picture nor a path.
        """
        listed = as_pictures(images)
        with evaluating(self):
            return embed_by_length(listed, [0] * len(listed), self._embed_pictures, self.width, batch_size, dims)

    def _embed_pictures(self, images: Sequence[Picture]) -> Tensor:
        pixels_BCHW = torch.stack([to_pixels(image, self.clip[0].transform) for image in images])
        dtype = next(self.image.parameters()).dtype  # half precision, if the model was converted
        embedding_BD: Tensor = self.clip_projector(self.image(pixels_BCHW.to(self.device, dtype)))
        return embedding_BD

    def similarity(self, text: Tensor | Texts, image: Tensor | Pictures) -> Tensor:
        """Cosine similarity of every text with every picture.

        >>> scores_NM = model.similarity(["red apple", "zwei Hunde"], picture)
        >>> scores_NM.shape
        torch.Size([2, 1])
        >>> text_ND, image_MD = model.encode_text("red apple"), model.encode_image([picture, picture])
        >>> model.similarity(text_ND, image_MD).shape
        torch.Size([1, 2])

        Args:
            text: embeddings (N, D), or texts as `encode_text` takes them.
            image: embeddings (M, D), or pictures as `encode_image` takes them.
        Returns:
            (N, M) between -1 and 1, float32 on the CPU.
        Raises:
            DataError: a file cannot be read as a picture.
            ValueError: the embeddings have different widths, or more than two dimensions.
        """
        text_ND = text if isinstance(text, Tensor) else self.encode_text(text)
        image_MD = image if isinstance(image, Tensor) else self.encode_image(image)
        return similarity(text_ND, image_MD)

    def save(self, folder: str | Path) -> None:
        """Write the model folder (`layout.py` lists its files).

        >>> model.save("models/copy")

        config.json is written last: a folder that has it is complete. It has hashes of the other files, for `load`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / layout.MODEL_CONFIG).unlink(missing_ok=True)
        self.clip[0].model.get_parameter("logit_scale").data.copy_(self.teacher_scale)
        self.clip[0].save(folder / layout.CLIP)
        self.encoder.save(folder / layout.ENCODER)
        settings = save_projectors(self, folder / layout.PROJECTOR)
        tool = {"format": FORMAT, "tool": f"mclip_kit {__version__}"}
        inputs = {"text_cleaning": self.text_cleaning, "pictures": self.clip[0].pictures.model_dump()}
        facts = {"trained_languages": self.trained_languages, "made_from": self.made_from, "dims": self.dims}
        write_config(folder / layout.MODEL_CONFIG, {**tool, **settings, **inputs, **facts})


def load(
    path: str | Path, device: str | torch.device = "auto", dtype: Dtype | None = None, verify: bool = True
) -> MultilingualClip:
    """Load a model folder, ready to encode.

    >>> import mclip_kit
    >>> model = mclip_kit.load("models/mine")
    >>> model.encode_text("red apple").dtype
    torch.float32
    >>> half = mclip_kit.load("models/mine", device="cpu", dtype="bf16")
    >>> half.device
    device(type='cpu')

    Args:
        path: the folder, as `mclip-kit train` and `MultilingualClip.save` write it; or its URL in object storage.
        device: `auto` (the GPU if CUDA is available, else the CPU) or a torch device.
        dtype: of the weights: `bf16`, `fp16`, `fp32`, their long names or a torch dtype; None is float32. Embeddings
            are always float32.
        verify: compare the files with the hashes in config.json, so that damage and edits are found; folders of
            earlier versions have none. False saves the time of reading the files twice.
    Raises:
        CheckpointError: the folder is not a model folder, or it is damaged; the message names the file.
        ValueError: the dtype is not one of floating-point numbers, or the device cannot be used here.
        TypeError: the path is none.
    """
    folder, where, numbers = opened(path, device, dtype)
    return _read_folder(folder, verify).to(where, numbers).eval()


def _read_folder(folder: Path, verify: bool) -> MultilingualClip:
    settings = read_config(folder, folder / layout.MODEL_CONFIG, verify)
    clip = clip_from_folder(folder / layout.CLIP)
    clip.pictures = settings.pictures
    encoder = encoder_of(folder)
    with building(folder):
        model = MultilingualClip(clip, encoder, settings.projector, settings.clip_projector, settings.text_cleaning)
    model.add_weights(folder, settings)
    return model
