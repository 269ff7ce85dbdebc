"""The recipe: one typed YAML file that is the whole experiment, checked before any weight is loaded.

`load` reads a recipe, applies `key.path=value` overrides, and reports every mistake at once with its key path.
This module imports no torch, so a wrong recipe is refused in a blink.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from mclip_kit.config.stages import AnyStage, TranslationStage, TriangleStage
from mclip_kit.config.yaml import Count, Fraction, NonNegative, Positive, Section, find, overridden, parse, read_yaml


class Teacher(Section):
    """The CLIP whose image tower we keep and whose text tower teaches."""

    model: str | dict[str, Any] = Field(
        description="An open_clip model name, `local-dir:DIR`, `hf-hub:ORG/NAME`, `openai:FILE` (a weight file in "
        "OpenAI's naming; it says the sizes), or open_clip's own model config."
    )
    weights: str | None = Field(
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


class NewEncoder(Section):
    """A new XLM-R-shaped encoder with random weights; its vocabulary is that of the bitext folder."""

    layers: Count = Field(description="Transformer layers.")
    width: Count = Field(description="Hidden width H.")
    heads: Count = Field(description="Attention heads.")
    ffn: Count = Field(description="Width of the feed-forward layers.")
    dropout: Fraction = Field(0.1, description="Dropout of hidden states and attention.")
    positions: Annotated[int, Field(ge=3)] = Field(
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
    Annotated[str, Tag("a-name")] | Annotated[NewEncoder, Tag("sizes")], Discriminator(_kind_of_encoder)
]


class Projector(Section):
    """What turns the encoder's token states into one student embedding."""

    kind: Literal["linear", "mlp", "altclip", "transformer"] = Field(
        description="`linear` and `mlp` on pooled states; `altclip`: LayerNorm, linear, bias-free projection; "
        "`transformer`: mCLIP's X-projector, more XLM-R layers over all token states."
    )
    pool: Literal["eos", "cls", "mean"] = Field("cls", description="Which token states become the embedding.")
    layers: Count = Field(2, description="transformer: number of layers.")
    hidden: Count | None = Field(None, description="mlp: hidden width; altclip: inner width (default: the output's).")
    dropout: Fraction = Field(0.0, description="mlp and transformer: dropout while training.")
    noise: NonNegative = Field(
        0.0,
        description="linear and mlp: standardise pooled states and, in training, add Gaussian noise of this standard "
        "deviation; 0 leaves out both.",
    )


class Lora(Section):
    """Low-rank adapters in the encoder, which `train: [lora]` names; they are merged into it at the end."""

    rank: Count = Field(8, description="Rank of each layer's update.")
    alpha: Count = Field(16, description="The update is scaled by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout before an adapter.")
    targets: Annotated[list[str], Field(min_length=1)] = Field(
        ["query", "value"], description="Layers that get one, as transformers calls them."
    )


class Data(Section):
    """Prepared folders, relative to the current folder."""

    captions: str | None = Field(None, description="A folder that `mclip-kit prepare` made: pictures and captions.")
    bitext: str | dict[str, Positive] | None = Field(
        None,
        description="A fairseq-binarised folder of parallel sentences; or several, each with its share of the rows.",
    )

    @property
    def bitexts(self) -> dict[str, float]:
        """Folder of parallel sentences -> its share, in any unit."""
        return {self.bitext: 1.0} if isinstance(self.bitext, str) else dict(self.bitext or {})

    @property
    def shares(self) -> list[float] | None:
        """The shares of several folders of parallel sentences; None: there are not several."""
        return list(self.bitexts.values()) if len(self.bitexts) > 1 else None


class Cache(Section):
    """Where outputs of frozen towers are kept, so that each is computed once."""

    features: Literal["off", "pooled", "tokens", "auto"] = Field(
        "auto",
        description="off: compute in every step; pooled: keep one vector an image or text; tokens: also every token's "
        "state, which a transformer projector reads; auto: tokens where they fit on the disk.",
    )
    folder: str | None = Field(
        None, description="The cache's root; default: the variable MCLIP_KIT_CACHE, else `features` beside the run."
    )
    dtype: Literal["fp16", "fp32", "int8"] = Field(
        "fp16", description="Stored numbers; int8 (with a scale a token) is for token states, others are fp16 then."
    )
    workers: Annotated[int, Field(ge=0)] = Field(2, description="Processes that decode picture files.")
    max_bad_fraction: Fraction = Field(
        0.01, description="Share of pictures that may be unreadable; they are reported and left out."
    )


def _cache_by_name(value: Any) -> Any:
    """`cache: tokens` is short for {features: tokens}; YAML reads `off` as false."""
    section = value if isinstance(value, dict) else {"features": value}
    features = section.get("features")
    return {**section, "features": "auto" if features else "off"} if isinstance(features, bool) else section


class Evaluation(Section):
    """Scores while training: retrieval on the captions folder; of translation stages, translations of the bitext."""

    split: str = Field("valid", description="Split of the captions, or sentences, to score while training.")
    languages: list[str] | Literal["all"] = Field("all", description="Languages to score.")
    sentences: Count = Field(500, description="Translation: of each direction, the first so many sentences.")
    beams: Count = Field(5, description="Translation: width of the beam search.")
    every_epochs: Count = Field(1, description="Epochs between evaluations; step 0 and a stage's end always count.")
    every_steps: Count | None = Field(None, description="Steps between evaluations, instead of epochs.")
    keep: Literal["best", "last"] = Field("last", description="The weights with which a stage ends.")
    metric: str | None = Field(
        None,
        description="The number that decides, such as mean_recall, de_t2i_r1 or bleu; none: what the stage is about.",
    )
    patience: Count | None = Field(
        None, description="Evaluations without a better score that end a stage, with its best weights; none: never."
    )
    stop_below_start: NonNegative | None = Field(
        None, description="End a run whose metric falls so many points below the stage's step 0; none: never."
    )

    @model_validator(mode="after")
    def _patience_keeps_the_best(self) -> "Evaluation":
        if self.patience and self.keep != "best":
            raise ValueError("patience ends a stage with its best weights: set keep: best")
        return self


class Recipe(Section):
    """One experiment."""

    about: str = Field(description="One line: what this recipe is for.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="Seed of everything that is drawn.")
    start: str | None = Field(
        None, description="A model folder to go on from; it brings teacher, encoder and projectors, so leave these out."
    )
    teacher: Teacher | None = None
    encoder: AnyEncoder | None = Field(
        None, description="`hf:NAME_OR_DIR` of a transformers encoder, `fairseq:DIR` of an XLM-R, or a new one's sizes."
    )
    projector: Projector | None = None
    decoder: NewDecoder | None = Field(None, description="For stages of kind translate; none: one of 12 layers.")
    lora: Lora | None = Field(None, description="Adapters in the encoder; needs the package peft.")
    clip_projector: Literal["none", "linear"] = Field(
        "none", description="`linear`: one bias-free map from CLIP's space, shared by image and teacher text (mCLIP)."
    )
    data: Data
    stages: Annotated[list[AnyStage], Field(min_length=1)]
    cache: Annotated[Cache, BeforeValidator(_cache_by_name)] = Field(
        default_factory=lambda: Cache.model_validate({}),
        description="Features of frozen towers: off, pooled, tokens, auto, or a section.",
    )
    evaluation: Evaluation | None = Field(None, description="None: no evaluation while training.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="Several processes: each has all weights (ddp), or those of the encoder are dealt out (fsdp).",
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        ["tensorboard"], description="Where curves go besides RUN/metrics.jsonl; wandb needs the package of that name."
    )
    checkpoint_every: Count = Field(200, description="Steps between checkpoints; a stage's end always writes one.")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Recipe":
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def triangles(self) -> list[TriangleStage]:
        """The stages on edges of the triangle."""
        return [stage for stage in self.stages if isinstance(stage, TriangleStage)]

    @property
    def translations(self) -> list[TranslationStage]:
        """The stages that learn to translate."""
        return [stage for stage in self.stages if isinstance(stage, TranslationStage)]

    @property
    def sources(self) -> dict[str, str]:
        """What the recipe calls the weights of its frozen towers: a name or a place, or `new`."""
        if self.start:
            return dict.fromkeys(("image", "teacher_text", "encoder"), self.start)
        teacher, encoder = self.teacher, self.encoder
        named = teacher is not None and isinstance(teacher.model, str)
        clip = f"{teacher.model} {teacher.weights or ''}".strip() if teacher and named else "new"
        return {"image": clip, "teacher_text": clip, "encoder": encoder if isinstance(encoder, str) else "new"}

    def _problems(self) -> Iterator[str]:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            yield "two stages have the same name"
        for index, stage in enumerate(self.stages):
            if getattr(self.data, stage.data) is None:
                yield f"stages.{index}.data is {stage.data}, but data.{stage.data} is not given"
        named = [f"stages.{i}" for i, stage in enumerate(self.stages) if "lora" in stage.train]
        if self.parallel == "fsdp" and any(stage.optimizer == "lamb" for stage in self.stages):
            yield "parallel: fsdp goes with adamw: lamb compares whole weights"
        if bool(named) != bool(self.lora):
            yield f"{named[0]} trains lora, which is not given" if named else "lora is given, but no stage trains it"
        if self.parallel == "fsdp" and self.translations:
            yield "parallel: fsdp is for the triangle's stages: the decoder shares the encoder's word table"
        if self.decoder and not self.translations:
            yield "decoder is given, but no stage is of kind translate"
        for index, stage in enumerate(self.stages):
            if stage.wise_ft and index < len(self.stages) - 1:
                yield f"stages.{index}.wise_ft is for the last stage, whose weights become the model"
            elif stage.wise_ft and self.lora:
                yield f"stages.{index}.wise_ft is for whole weights, not for adapters: leave lora out"
        if self.evaluation and self.triangles and self.data.captions is None:
            yield "evaluation needs data.captions"
        parts: dict[str, Any] = {"encoder": self.encoder}
        if self.triangles:
            parts |= {"teacher": self.teacher, "projector": self.projector}
        elif self.teacher or self.projector:
            yield "teacher and projector: no stage has them; leave them out"
        given = [name for name, part in parts.items() if part is not None]
        if self.start and (given or self.clip_projector != "none"):
            yield f"start brings its own towers: leave out {', '.join(given or ['clip_projector'])}"
        elif not self.start and len(given) < len(parts):
            yield f"{', '.join(sorted(set(parts) - set(given)))}: missing, and there is no start to bring them"
        elif not self.start:
            yield from self._tower_problems()

    def _tower_problems(self) -> Iterator[str]:
        if (
            self.teacher
            and self.teacher.weights == "train"
            and not any(stage.trains("teacher_text") for stage in self.stages)
        ):
            yield "teacher.weights is train, but no stage trains teacher_text"
        if isinstance(self.encoder, str) and not re.match(r"(hf|fairseq):.", self.encoder):
            yield f"encoder {self.encoder!r} is not of the form hf:NAME_OR_DIR or fairseq:DIR"
        if isinstance(self.encoder, NewEncoder):
            if self.encoder.weights == "train" and not any(stage.trains("encoder") for stage in self.stages):
                yield "the encoder is new, but no stage trains it (encoder.weights: random if that is meant)"
            if self.data.bitext is None:
                yield "a new encoder takes its vocabulary from data.bitext, which is not given"
        if self.projector and self.projector.noise and self.projector.kind not in ("linear", "mlp"):
            yield f"projector.noise has no effect on kind {self.projector.kind}"


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: a path, or the name of a shipped recipe.
        overrides: `key.path=value` strings; the value is read as YAML, list items are named by their index.
    Raises:
        RecipeError: every mistake of the recipe, each with its key path, in one message.
    """
    path = find(name)
    return parse(overridden(read_yaml(path), overrides), Recipe, str(path))


def dump(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that `load` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
