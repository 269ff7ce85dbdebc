"""The model of a recipe: teacher, encoder, projector, decoder, adapters."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mclip_kit.config.yaml import Count, Fraction, NonNegative, Place, Section, Whole


class Teacher(Section):
    """The CLIP whose image tower we keep and whose text tower teaches."""

    model: Place | dict[str, Any] = Field(
        description="An open_clip model name, `local-dir:DIR`, `hf-hub:ORG/NAME`, `openai:FILE` (a weight file in "
        "OpenAI's naming; it says the sizes), or open_clip's own model config."
    )
    weights: Place | None = Field(
        None, description="An open_clip pretrained tag or a weight file; `random`; `train`: a stage trains it."
    )

    @model_validator(mode="after")
    def _weights_fit_the_model(self) -> "Teacher":
        carries_weights = isinstance(self.model, str) and self.model.startswith(("local-dir:", "hf-hub:", "openai:"))
        if carries_weights and self.weights is not None:
            raise ValueError("leave `weights` out: local-dir:, hf-hub: and openai: models bring their own")
        if not carries_weights and self.weights is None:
            raise ValueError("`weights` is missing: a pretrained tag, a weight file, `random` or `train`")
        if isinstance(self.model, dict) and self.weights not in ("random", "train"):
            raise ValueError("a model config starts from new weights: `weights: random` or `weights: train`")
        return self


class Pictures(Section):
    """How a picture file becomes RGB, where files say more than their colours. open_clip's ways are the last ones."""

    exif: Literal["apply", "ignore"] = Field("apply", description="EXIF's orientation: turn the picture upright.")
    alpha: Literal["white", "drop"] = Field(
        "white", description="Transparent pixels: on white; `drop`: the colours that lie under the transparency."
    )
    depth: Literal["scale", "clip"] = Field(
        "scale", description="16-bit grey: divided by 257; `clip`: values above 255 are white."
    )


AS_SEEN = Pictures.model_validate({})
"""Upright, on white, all grey values: as people see a picture."""
AS_OPEN_CLIP = Pictures(exif="ignore", alpha="drop", depth="clip")
"""What open_clip's own transform does, by `convert("RGB")`."""

TextCleaning = Literal["none", "ftfy"]


class NewEncoder(Section):
    """A new XLM-R-shaped encoder with random weights; its vocabulary is that of the bitext folder."""

    layers: Count = Field(description="Transformer layers.")
    width: Count = Field(description="Hidden width H.")
    heads: Count = Field(description="Attention heads.")
    ffn: Count = Field(description="Width of the feed-forward layers.")
    dropout: Fraction = Field(0.1, description="Dropout of hidden states and attention.")
    positions: Annotated[Whole, Field(ge=3)] = Field(
        512, description="Longest input, in tokens, special tokens included."
    )
    weights: Literal["random", "train"] = Field(
        "train", description="`train`: a stage trains it; `random`: it may stay as it is."
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "NewEncoder":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class NewDecoder(Section):
    """A new decoder for translation stages, of the encoder's width; its word table is the encoder's (mCLIP's MTE)."""

    layers: Count = Field(12, description="Transformer layers.")
    heads: Count | None = Field(None, description="Attention heads; none: as many as the encoder has.")
    ffn: Count | None = Field(None, description="Width of the feed-forward layers; none: the encoder's.")
    dropout: Fraction = Field(0.1, description="Dropout of hidden states and attention.")


def _kind_of_encoder(value: Any) -> str:
    return "a-name" if isinstance(value, str) else "sizes"


AnyEncoder = Annotated[
    Annotated[Place, Tag("a-name")] | Annotated[NewEncoder, Tag("sizes")], Discriminator(_kind_of_encoder)
]


class Projector(Section):
    """What turns the encoder's token states into one student embedding."""

    kind: Literal["linear", "mlp", "altclip", "transformer"] = Field(
        description="`linear` (one map or two) and `mlp` on pooled states; `altclip`: LayerNorm, linear, bias-free "
        "projection; `transformer`: mCLIP's X-projector, more XLM-R layers over all token states."
    )
    pool: Literal["eos", "cls", "mean"] = Field("cls", description="Which token states become the embedding.")
    layers: Count = Field(2, description="transformer: number of layers.")
    hidden: Count | None = Field(
        None,
        description="mlp: hidden width; altclip: inner width (default: the output's); linear: inner width of two maps "
        "instead of one (M2M), which a model folder has as their product.",
    )
    dropout: Fraction = Field(0.0, description="mlp and transformer: dropout while training.")
    noise: NonNegative = Field(
        0.0,
        description="linear and mlp: standardise pooled states and, in training, add Gaussian noise of this standard "
        "deviation; 0 leaves out both.",
    )
    init: Literal["random", "ridge"] = Field(
        "random",
        description="Weights before the first step; ridge: the closed-form linear map from pooled states to the "
        "teacher's space, over the rows of the first stage that trains the projector, its lambda chosen by evaluation.",
    )

    @model_validator(mode="after")
    def _closed_forms_are_linear(self) -> "Projector":
        if self.init == "ridge" and self.kind == "transformer":
            raise ValueError("init: ridge: a transformer projector has no closed form; use linear, mlp or altclip")
        return self


class Lora(Section):
    """Low-rank adapters in the encoder, which `train: [lora]` names; they are merged into it at the end."""

    rank: Count = Field(8, description="Rank of each layer's update.")
    alpha: Count = Field(16, description="The update is scaled by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout before an adapter.")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Layers that get one, as transformers calls them; none: the maps of queries and values, under the "
        "encoder's own names.",
    )
