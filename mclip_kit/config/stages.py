"""The stages of a recipe: what is trained, with which data and optimiser. One class a kind of stage."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from mclip_kit.config.edges import Edge as Edge
from mclip_kit.config.edges import EdgeName, base
from mclip_kit.config.edges import vertices as vertices
from mclip_kit.config.problems import centroid_problems, mining_problems, sharding_problems
from mclip_kit.config.yaml import Count, Decay, Fraction, Languages, NonNegative, Number, Once, Positive, Section, Whole
from mclip_kit.errors import RecipeError

TOWERS = ("image", "teacher_text", "encoder", "projector", "clip_projector")
STUDENT = ("encoder", "projector")
Optimizer = Literal["adamw", "lamb", "lamb_apex", "adam_fairseq"]
Direction = Annotated[str, Field(pattern=r"^[^-\s]+-[^-\s]+$")]


class Augment(Section):
    """Augmentation of the pictures in training; never a flip, since pictures may show arrows or text."""

    shift: Annotated[Whole, Field(ge=0)] = Field(0, description="Largest shift in pixels, each direction.")
    colour: Fraction = Field(0.0, description="Largest relative change of brightness and contrast.")


class Mine(Section):
    """Pairs of unpaired sentences with the teacher's texts of the stage, by margin (arXiv 1811.01136)."""

    margin: Positive = Field(
        1.02, description="Least cosine of a pair, as a share of the mean over the nearest neighbours of both sides."
    )
    neighbours: Count = Field(4, description="Nearest neighbours of each side in that mean.")


class Stage(Section):
    """What every kind of stage has: what is trained, at which rate, and by which optimiser.

    A kind of stage is a subclass with a field `kind`, and `data` and `split` as fields or properties;
    `tasks.base.register` makes it known.

    Attributes:
        needs: sections of the recipe without which its model cannot be built.
        uses: sections of the recipe that it may use besides.
        rows_follow_processes: whether the number of processes decides which rows share a batch.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    uses: ClassVar[frozenset[str]] = frozenset()
    rows_follow_processes: ClassVar[bool] = False

    if TYPE_CHECKING:  # every kind has these two, as fields or properties

        @property
        def data(self) -> Literal["captions", "bitext"]: ...

        @property
        def split(self) -> str | dict[str, str]: ...

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = Field(description="A short name for logs and folders.")
    train: Annotated[list[str], Field(min_length=1)] = Field(
        description="Towers (image, teacher_text, encoder, projector, clip_projector, student, decoder), lora, or "
        "globs of parameter names."
    )
    language_temperature: Annotated[Number, Field(ge=1)] = Field(
        1.0, description="Sampling of languages, or of directions: probability ~ rows^(1/temperature)."
    )
    checkpointing: bool = Field(False, description="Activation checkpointing: less memory, one more forward pass.")
    max_tokens: Annotated[Whole, Field(ge=3)] = Field(
        77, description="Longest text of the encoder in tokens, special tokens included; longer texts are cut."
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="AdamW (torch) or LAMB (timm); lamb_apex and adam_fairseq: those of mCLIP's code, see train/optim.",
    )
    lr: Positive = Field(description="Peak learning rate.")
    weight_decay: NonNegative = Field(
        0.01, description="Decoupled weight decay of matrices, not biases or norms; lamb_apex, adam_fairseq: of all."
    )
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="Learning rate of a layer of the encoder as a fraction of that of the next layer."
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's moment decays.")
    eps: Positive = Field(1e-8, description="Adam's epsilon.")
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = Field("cosine", description="Shape after the warm-up.")
    warmup_steps: Annotated[Whole, Field(ge=0)] = Field(0, description="Linear warm-up, in steps.")
    warmup_init_lr: NonNegative | None = Field(
        None, description="Rate of the first step, from which the warm-up rises (fairseq); none: lr / warmup_steps."
    )
    clip_norm: Positive | None = Field(None, description="Largest gradient norm; none: no clipping.")
    max_nonfinite: Count = Field(
        5, description="Consecutive steps whose loss or gradient may be non-finite (NaN or inf); each is skipped."
    )
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of the moving average of weights that is scored and kept; none: no average."
    )
    shuffle_window: Count | None = Field(
        None, description="Rows within which an epoch is random, for data that does not fit the disk; none: all rows."
    )
    wise_ft_alpha: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        None,
        description="The last stage: also write alpha * its weights + (1 - alpha) * the weights at its start "
        "(WiSE-FT, arXiv 2109.01903) to RUN/model-wise_ft.",
    )

    @model_validator(mode="after")
    def _warm_up_has_steps(self) -> Self:
        if self.warmup_init_lr is not None and not self.warmup_steps:
            raise ValueError("warmup_init_lr has no effect: warmup_steps is 0")
        return self

    def trains(self, tower: str) -> bool:
        """Whether some parameter of this tower may be trained (globs are taken at their first part)."""
        heads = {pattern.split(".")[0] for pattern in self.train}
        return any(fnmatchcase(tower, head) for head in heads) or (tower in STUDENT and "student" in heads)

    def problems(self, recipe: Any) -> Iterator[str]:
        """What does not fit together between this stage and the rest of its recipe."""
        yield from ()

    def check_processes(self, processes: int) -> None:
        """RecipeError if so many processes cannot share a step."""

    @staticmethod
    def section_of(tree: Mapping[str, Any]) -> "type[Stage]":
        """The class of a stage that is not parsed yet; of an unknown kind, this one."""
        return KINDS.get(kind_of(tree), Stage)


class TriangleStage(Stage):
    """Towers are trained by losses on edges of the triangle: image, teacher text, student text."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher", "encoder", "projector"})
    uses: ClassVar[frozenset[str]] = frozenset({"clip_projector"})

    kind: Literal["triangle"] = Field("triangle", description="On edges of the triangle.")
    edges: Annotated[dict[EdgeName, Edge], Field(min_length=1)] = Field(
        description="image-teacher_text, image-student_text, teacher_text-student_text or centroid-student_text: its "
        "loss. A second loss on an edge has its name, a + and a word, such as teacher_text-student_text+kl. centroid: "
        "the mean of the student's embeddings of a row and its translations as the stage starts (arXiv 2608.30725)."
    )
    data: Literal["captions", "bitext"] = Field(description="Rows are image captions, or parallel sentences.")
    languages: Languages | Literal["all"] = Field("all", description="Languages of the student's side.")
    split: str | dict[str, str] = Field(
        "train", description="Split of the rows; captions: or language -> split (Multi30K's two tasks)."
    )
    include_english: bool = Field(
        True, description="bitext: add English->English rows (the collapse without: AltCLIP)."
    )
    monolingual: bool = Field(False, description="Every batch holds one language.")
    templates: list[str] = Field([], description="Patterns with {} for the teacher's text; if frozen, their mean.")
    augment: Augment | None = Field(None, description="Augmentation of the pictures; needs the live image tower.")
    mine: Mine | None = Field(
        None,
        description="Add rows of data.unpaired: a sentence and the teacher's text that are nearest to each other in "
        "the frozen encoder's space, with that text's picture.",
    )
    epochs: Count = Field(description="Passes over the rows.")
    batch_size: Annotated[Whole, Field(ge=2)] = Field(description="Rows a step, over all processes.")
    micro_batch: Count | None = Field(
        None, description="Rows a process computes at once; the loss stays that of the whole batch. None: all of them."
    )

    @model_validator(mode="after")
    def _edges_fit_the_data(self) -> "TriangleStage":
        if self.data == "bitext" and any("image" in base(edge) for edge in self.edges):
            raise ValueError(
                "bitext has no pictures: its edges are teacher_text-student_text and centroid-student_text"
            )
        if self.data == "bitext" and not isinstance(self.split, str):
            raise ValueError("split: give one name for bitext, not a mapping")
        followed = all("teacher_text" not in base(edge) for edge in self.edges)  # by kl alone: it gets no gradient
        learning = self.vertices - {"teacher_text"} if followed else self.vertices
        used = learning & {"image", "teacher_text"}
        used |= {"clip_projector"} if self.vertices & {"image", "teacher_text"} else set()
        used |= {"student", "lora", *STUDENT} if "student_text" in self.vertices else set()
        for pattern in self.train:
            tower = pattern.split(".")[0]
            if tower in (*TOWERS, "student", "lora", "decoder") and tower not in used:
                raise ValueError(f"train names {tower}, which is on none of the stage's edges")
        for name, edge in self.edges.items():
            student = base(name) == "teacher_text-student_text"
            if edge.missing_teacher == "image" and (not student or self.data == "bitext"):
                raise ValueError(f"edges.{name}.missing_teacher: image is for teacher_text-student_text on captions")
            if edge.loss == "kl" and base(name) == "image-teacher_text":
                raise ValueError(f"edges.{name}: kl is for edges of student_text; the teacher has no teacher")
        if any("{}" not in template for template in self.templates):
            raise ValueError("templates: each needs a {} at the place of the caption")
        if self.mine and "student_text" not in self.vertices:
            raise ValueError("mine has no effect: no edge has student_text")
        if self.augment and "image" not in self.vertices:
            raise ValueError("augment has no effect: no edge has the image")
        return self

    def problems(self, recipe: Any) -> Iterator[str]:
        """What does not fit together between this stage and the rest of its recipe."""
        if recipe.evaluation and recipe.data.captions is None:
            yield "evaluation needs data.captions"
        if self.mine:
            yield from mining_problems(self, recipe)
        if recipe.parallel == "fsdp" and "student_text" in self.vertices:
            yield from sharding_problems(self, recipe)
        if "centroid" in self.vertices:
            yield from centroid_problems(self, recipe)

    def check_processes(self, processes: int) -> None:
        """RecipeError if a batch cannot be shared evenly."""
        if self.batch_size % processes:
            raise RecipeError(
                f"stage {self.name}: batch_size {self.batch_size} is not a multiple of the number of processes, "
                f"{processes}; start as many as divide it, or change batch_size"
            )

    @property
    def several_languages(self) -> bool:
        """Whether the rows may be in more languages than one."""
        english = {"en"} if self.data == "bitext" and self.include_english else set()
        return self.languages == "all" or len({*self.languages, *english}) > 1 or self.mine is not None

    @property
    def vertices(self) -> set[str]:
        """The vertices of the triangle that some edge needs."""
        return vertices(self.edges)


class Contrast(Section):
    """The contrastive loss of a translation stage, between sentences and their translations (mCLIP)."""

    weight: Positive = Field(2.0, description="Factor of this term beside the translation's.")
    temperature: Positive = Field(0.1, description="The true temperature.")


class TranslationStage(Stage):
    """A decoder learns to translate from the encoder's token states: mCLIP's multilingual text encoder (MTE)."""

    uses: ClassVar[frozenset[str]] = frozenset({"decoder"})
    rows_follow_processes: ClassVar[bool] = True

    kind: Literal["translate"] = Field("translate", description="Translation, with a decoder.")
    directions: Annotated[list[Direction], Field(min_length=1), Once] | Literal["all"] = Field(
        "all", description="SOURCE-TARGET, such as de-en; all: every pair of the bitext, both ways."
    )
    split: str = Field("train", description="Split of the sentences.")
    steps: Count = Field(description="Optimisation steps.")
    batch_tokens: Annotated[Whole, Field(ge=16)] = Field(
        description="Tokens a step, over all processes: number of sentences times the length of the longest one."
    )
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = Field(0.1, description="Of the cross-entropy.")
    contrast: Contrast | None = Field(None, description="None: translation alone.")
    language_linear: bool = Field(
        False, description="One linear layer a source language between encoder and decoder; not exported (mCLIP)."
    )

    @model_validator(mode="after")
    def _trains_what_takes_part(self) -> "TranslationStage":
        for pattern in self.train:
            tower = pattern.split(".")[0]
            if tower in (*TOWERS, "student") and tower != "encoder":
                raise ValueError(f"train names {tower}; a translation stage has encoder and decoder")
        return self

    def problems(self, recipe: Any) -> Iterator[str]:
        """What does not fit together between this stage and the rest of its recipe."""
        if recipe.parallel == "fsdp":
            yield "parallel: fsdp is for the triangle's stages: the decoder shares the encoder's word table"

    @property
    def data(self) -> Literal["bitext"]:
        """Rows are parallel sentences."""
        return "bitext"


KINDS: dict[str, type[Stage]] = {"triangle": TriangleStage, "translate": TranslationStage}
"""Value of `kind` -> the class of the stage."""


def kind_of(value: Any) -> str:
    """The kind that a stage names; `triangle` if it names none."""
    return str(value.get("kind", "triangle") if isinstance(value, dict) else getattr(value, "kind", "triangle"))


class OfAnyKind:
    """Marks a stage in a schema: it is parsed by the class of its kind, of those that are known then."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(section) for kind, section in KINDS.items()}
        return core_schema.tagged_union_schema(choices, discriminator=kind_of)


AnyStage = Annotated[Stage, OfAnyKind()]
