"""A stage of a recipe: what is trained, with which data and optimiser; on edges of the triangle, or to translate."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mclip_kit.config.yaml import Count, Decay, Fraction, NonNegative, Positive, Section

EdgeName = Literal["image-teacher_text", "image-student_text", "teacher_text-student_text"]
TOWERS = ("image", "teacher_text", "encoder", "projector", "clip_projector")
STUDENT = ("encoder", "projector")


class Edge(Section):
    """The loss on one edge of the triangle."""

    loss: Literal["contrastive", "mse"] = Field(description="Symmetric InfoNCE, or mean squared error.")
    weight: NonNegative = Field(1.0, description="Factor of this term in the sum.")
    temperature: Positive = Field(0.07, description="contrastive: the true temperature (at the start, when learned).")
    learned: bool = Field(False, description="contrastive: learn the temperature, with exp(scale) clamped at 100.")
    positives: Literal["image", "image_sum", "pair"] = Field(
        "image",
        description="contrastive: every text of the same image is right, averaged over them or summed (mCLIP's "
        "released fine-tuning), or only the row's own.",
    )
    duplicates: Literal["mask", "negatives"] = Field(
        "negatives",
        description="contrastive: the same text at another image is wrong there (CLIP), or neither right nor wrong.",
    )
    without_teacher: Literal["drop", "image"] = Field(
        "drop",
        description="teacher_text-student_text: rows without a text in the teacher's language take no part, or take "
        "the image's embedding in its place (mCLIP's released code).",
    )
    normalize: Literal["none", "both"] = Field("none", description="mse: L2-normalise both sides first.")

    @model_validator(mode="after")
    def _learned_temperature_can_move(self) -> "Edge":
        if self.learned and self.loss == "mse":
            raise ValueError("mse has no temperature to be learned")
        if self.learned and self.temperature < 0.01:
            raise ValueError(
                f"a learned temperature starts at 0.01 or above, not {self.temperature}: it is clamped there"
            )
        return self


def vertices(edges: Mapping[Any, Any]) -> set[str]:
    """The vertices that some edges need: their ends, and the image where it stands in for the teacher's text."""
    ends = {vertex for name in edges for vertex in name.split("-")}
    return ends | {"image"} if any(edge.without_teacher == "image" for edge in edges.values()) else ends


class Augment(Section):
    """Small changes of the pictures in training; never a flip (arrows, text)."""

    shift: Annotated[int, Field(ge=0)] = Field(0, description="Largest shift in pixels, each direction.")
    colour: Fraction = Field(0.0, description="Largest relative change of brightness and contrast.")


class Stage(Section):
    """What every kind of stage has: what is trained, how fast, and by which optimiser."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = Field(description="A short name for logs and folders.")
    train: Annotated[list[str], Field(min_length=1)] = Field(
        description="Towers (image, teacher_text, encoder, projector, clip_projector, student, decoder) or globs of "
        "parameters."
    )
    language_temperature: Annotated[float, Field(ge=1)] = Field(
        1.0, description="Sampling of languages, or of directions: probability ~ rows^(1/temperature)."
    )
    checkpointing: bool = Field(False, description="Compute layers' outputs again in the backward pass: less memory.")
    max_tokens: Annotated[int, Field(ge=3)] = Field(
        77, description="Longest text of the encoder in tokens, special tokens included; cut beyond."
    )
    optimizer: Literal["adamw", "lamb"] = Field("adamw", description="AdamW (torch) or LAMB (timm).")
    lr: Positive = Field(description="Peak learning rate.")
    weight_decay: NonNegative = Field(
        0.01, description="Decoupled weight decay of matrices (not biases, norms, scales)."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Each layer of the encoder learns at so much of the rate of the one above."
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's moment decays.")
    eps: Positive = Field(1e-8, description="Adam's epsilon.")
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = Field("cosine", description="Shape after the warm-up.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Linear warm-up, in steps.")
    clip_norm: Positive | None = Field(None, description="Largest gradient norm; none: no clipping.")
    max_nonfinite: Count = Field(
        5,
        description="Steps in a row whose loss or gradient may be no finite number; each is skipped.",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of the moving average of weights that is scored and kept; none: no average.",
    )
    wise_ft: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="The last stage: also keep wise_ft * its weights + (1 - wise_ft) * those that it started from "
        "(WiSE-FT, arXiv 2109.01903), in RUN/model-wise_ft.",
    )

    def trains(self, tower: str) -> bool:
        """Whether some parameter of this tower may be trained (globs are taken at their first part)."""
        heads = {pattern.split(".")[0] for pattern in self.train}
        return tower in heads or "*" in heads or (tower in STUDENT and "student" in heads)


class TriangleStage(Stage):
    """Which towers are trained on which edges of the triangle, with which data."""

    kind: Literal["triangle"] = Field("triangle", description="On edges of the triangle.")
    edges: Annotated[dict[EdgeName, Edge], Field(min_length=1)] = Field(description="Edge of the triangle: its loss.")
    data: Literal["captions", "bitext"] = Field(description="Rows are image captions, or parallel sentences.")
    languages: list[str] | Literal["all"] = Field("all", description="Languages of the student's side.")
    split: str | dict[str, str] = Field(
        "train", description="Split of the rows; captions: or language -> split (Multi30K's two tasks)."
    )
    include_english: bool = Field(
        True, description="bitext: add English->English rows (the collapse without: AltCLIP)."
    )
    monolingual: bool = Field(False, description="Every batch holds one language.")
    templates: list[str] = Field([], description="Patterns with {} for the teacher's text while it is trained.")
    augment: Augment | None = Field(None, description="Augmentation of the pictures; needs the live image tower.")
    epochs: Count = Field(description="Passes over the rows.")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="Rows a step, over all processes.")
    micro_batch: Count | None = Field(
        None, description="Rows a process computes at once; the loss stays that of the whole batch. None: all of them."
    )

    @model_validator(mode="after")
    def _edges_fit_the_data(self) -> "TriangleStage":
        if self.data == "bitext" and any("image" in edge for edge in self.edges):
            raise ValueError("bitext has no pictures: its only edge is teacher_text-student_text")
        if self.data == "bitext" and not isinstance(self.split, str):
            raise ValueError("split: bitext has one for all languages")
        used = {"clip_projector"} | (self.vertices & {"image", "teacher_text"})
        used |= {"student", *STUDENT} if "student_text" in self.vertices else set()
        for pattern in self.train:
            tower = pattern.split(".")[0]
            if tower in (*TOWERS, "student") and tower not in used:
                raise ValueError(f"train names {tower}, which is on none of the stage's edges")
        for name, edge in self.edges.items():
            if edge.without_teacher == "image" and (name != "teacher_text-student_text" or self.data == "bitext"):
                raise ValueError(f"edges.{name}.without_teacher: image is for teacher_text-student_text on captions")
        if any("{}" not in template for template in self.templates):
            raise ValueError("every template needs a {} where the caption goes")
        if self.augment and "image" not in self.vertices:
            raise ValueError("augment has no effect: no edge has the image")
        return self

    @property
    def vertices(self) -> set[str]:
        """The vertices of the triangle that some edge needs."""
        return vertices(self.edges)


class Contrast(Section):
    """The sentence contrast of a translation stage: a sentence is nearest to its translation, both ways (mCLIP)."""

    weight: NonNegative = Field(2.0, description="Factor of this term beside the translation's.")
    temperature: Positive = Field(0.1, description="The true temperature.")


class TranslationStage(Stage):
    """A decoder learns to translate from the encoder's token states: mCLIP's multilingual text encoder (MTE)."""

    kind: Literal["translate"] = Field(description="Translation, with a decoder.")
    directions: list[Annotated[str, Field(pattern=r"^[^-\s]+-[^-\s]+$")]] | Literal["all"] = Field(
        "all", description="SOURCE-TARGET, such as de-en; all: every pair of the bitext, both ways."
    )
    split: str = Field("train", description="Split of the sentences.")
    steps: Count = Field(description="Optimisation steps.")
    batch_tokens: Annotated[int, Field(ge=16)] = Field(
        description="Tokens a step, over all processes: sentences of one direction times the longest side's length."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Of the cross-entropy.")
    contrast: Contrast | None = Field(None, description="None: translation alone.")
    language_linear: bool = Field(
        False, description="A linear layer a source language between encoder and decoder; dropped at the end (mCLIP)."
    )

    @model_validator(mode="after")
    def _trains_what_takes_part(self) -> "TranslationStage":
        for pattern in self.train:
            tower = pattern.split(".")[0]
            if tower in (*TOWERS, "student") and tower != "encoder":
                raise ValueError(f"train names {tower}; a translation stage has encoder and decoder")
        return self

    @property
    def data(self) -> Literal["bitext"]:
        """Rows are parallel sentences."""
        return "bitext"


def kind_of_stage(value: Any) -> str:
    """The kind that a stage says it is; without a word, the triangle's."""
    return str(value.get("kind", "triangle") if isinstance(value, dict) else getattr(value, "kind", "triangle"))


AnyStage = Annotated[
    Annotated[TriangleStage, Tag("triangle")] | Annotated[TranslationStage, Tag("translate")],
    Discriminator(kind_of_stage),
]
