"""The recipe: one typed YAML file that is the whole experiment, checked before any weight is loaded.

`load` reads a recipe, applies `key.path=value` overrides, and reports every mistake at once with its key path.
This module imports no torch, so a wrong recipe is refused in a fraction of a second.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mclip_kit.config.effects import without_effect
from mclip_kit.config.model import AnyEncoder, Lora, NewDecoder, NewEncoder, Pictures, Projector, Teacher, TextCleaning
from mclip_kit.config.stages import KINDS, AnyStage, Stage
from mclip_kit.config.yaml import (
    Count,
    Fraction,
    LanguageCode,
    Languages,
    NonNegative,
    Place,
    Positive,
    Renamed,
    RenamedKey,
    Section,
    Whole,
    find,
    overridden,
    parse,
    read_yaml,
    rename_keys,
    rename_override,
)
from mclip_kit.config.yaml_loader import dump_yaml

RENAMED: Renamed = {
    ("start",): "init_from",
    ("cache", "workers"): "/workers",
    ("stages", "*", "wise_ft"): "wise_ft_alpha",
    ("stages", "*", "edges", "*", "without_teacher"): "missing_teacher",
}
"""Keys of earlier versions, which are read in this release -> their names now."""


class Data(Section):
    """Prepared folders, relative to the current folder, or URLs of object storage."""

    captions: Place | None = Field(None, description="A folder that `mclip-kit prepare` made: pictures and captions.")
    bitext: Place | dict[Place, Positive] | None = Field(
        None,
        description="A fairseq-binarised folder of parallel sentences; or several, each with its share of the rows.",
    )
    unpaired: dict[LanguageCode, Place] = Field(
        {}, description="Language -> a text file, one sentence a line: neither translations nor pictures; see mine."
    )
    max_unknown: Fraction = Field(
        0.2,
        description="Largest share of <unk> among a language's pieces, by the encoder's tokenizer; from 0.02 on told.",
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
        description="off: compute in every step; pooled: one vector per image or text is kept; tokens: also the state "
        "of every token, which a transformer projector reads; auto: tokens if the disk has room for them.",
    )
    folder: str | None = Field(
        None, description="The cache's root or URL; default: variable MCLIP_KIT_CACHE, else `features` beside the run."
    )
    dtype: Literal["fp16", "fp32", "int8"] = Field(
        "fp16",
        description="Type of stored numbers; int8 (one scale per token) is for token states, others are then fp16.",
    )
    max_bad_fraction: Fraction = Field(
        0.01, description="Share of pictures that may be unreadable; they are reported and left out."
    )


def _cache_by_name(value: Any) -> Any:
    """`cache: tokens` is short for {features: tokens}; YAML reads `off` as false."""
    section = value if isinstance(value, dict) else {"features": value}
    features = section.get("features")
    return {**section, "features": "auto" if features else "off"} if isinstance(features, bool) else section


class Evaluation(Section):
    """Evaluation while training: retrieval on the captions; for translation stages, translation of the bitext."""

    split: str = Field("valid", description="Split of the captions, or sentences, to score while training.")
    languages: Languages | Literal["all"] = Field("all", description="Languages to score.")
    sentences: Count = Field(500, description="Translation: of each direction, the first so many sentences.")
    beams: Count = Field(5, description="Translation: width of the beam search.")
    every_epochs: Count = Field(
        1, description="Epochs between evaluations; the start and the end of a stage are always evaluated."
    )
    every_steps: Count | None = Field(None, description="Steps between evaluations, instead of epochs.")
    keep: Literal["best", "last"] = Field("last", description="The weights with which a stage ends.")
    metric: str | None = Field(
        None,
        description="The value that decides which weights are best, such as mean_recall, de_t2i_r1 or bleu; none: the "
        "default of the kind of stage.",
    )
    patience: Count | None = Field(
        None, description="Early stopping: evaluations without a better score after which a stage ends; none: never."
    )
    stop_below_start: NonNegative | None = Field(
        None, description="Stop the run if the score falls more than so many points below that of step 0; none: never."
    )

    @model_validator(mode="after")
    def _patience_keeps_the_best(self) -> "Evaluation":
        if self.patience and self.keep != "best":
            raise ValueError("patience ends a stage with its best weights: set keep: best")
        return self


class Recipe(Section):
    """One experiment."""

    about: str = Field(description="One line: what this recipe is for.")
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(1, description="Seed of all random draws.")
    init_from: Place | None = Field(
        None, description="A model folder to start from; it has teacher, encoder and projectors: leave these keys out."
    )
    teacher: Teacher | None = Field(None, description="The CLIP that gets more languages.")
    encoder: AnyEncoder | None = Field(
        None, description="`hf:NAME_OR_DIR` of a transformers encoder, `fairseq:DIR` of an XLM-R, or a new one's sizes."
    )
    projector: Projector | None = Field(None, description="What is added to the encoder.")
    decoder: NewDecoder | None = Field(None, description="For stages of kind translate; none: one of 12 layers.")
    lora: Lora | None = Field(None, description="Adapters in the encoder; needs the package peft.")
    clip_projector: Literal["none", "linear"] = Field(
        "none", description="`linear`: one bias-free map from CLIP's space, shared by image and teacher text (mCLIP)."
    )
    pictures: Pictures | None = Field(
        None, description="How picture files become RGB; kept with the model. Without it init_from's, or the defaults."
    )
    text_cleaning: TextCleaning | None = Field(
        None,
        description="What is done to the student's texts before they are tokenised; kept with the model. `ftfy`: what "
        "open_clip does (mojibake, curly quotes, HTML escapes, spaces). Without it init_from's, or ftfy.",
    )
    data: Data = Field(description="What is trained on.")
    stages: Annotated[list[AnyStage], Field(min_length=1, description="What is trained, one after the other.")]
    cache: Annotated[Cache, BeforeValidator(_cache_by_name)] = Field(
        default_factory=lambda: Cache.model_validate({}),
        description="Features of frozen towers: off, pooled, tokens, auto, or a section.",
    )
    evaluation: Evaluation | None = Field(None, description="None: no evaluation while training.")
    workers: Annotated[Whole, Field(ge=0)] | None = Field(
        None,
        description="Reader processes behind every batch; 0: none. Default: one a core if picture files are decoded.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Several processes: each has all weights (ddp), or the encoder's are sharded (fsdp)."
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        ["tensorboard"], description="Where curves go besides RUN/metrics.jsonl; wandb needs the package of that name."
    )
    checkpoint_every: Count = Field(200, description="Steps between checkpoints; a stage's end always writes one.")
    checkpoints_kept: Count = Field(2, description="The newest checkpoints that are kept; the older are spares.")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Recipe":
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _new_models_have_inputs(self) -> "Recipe":
        if not self.init_from and "projector" in self.uses:
            self.pictures = self.pictures or Pictures.model_validate({})
            self.text_cleaning = self.text_cleaning or "ftfy"
        return self

    @property
    def sources(self) -> dict[str, str]:
        """Tower -> how the recipe names its weights: a name or a path, or `new`."""
        if self.init_from:
            return dict.fromkeys(("image", "teacher_text", "encoder"), self.init_from)
        teacher, encoder = self.teacher, self.encoder
        named = teacher is not None and isinstance(teacher.model, str)
        clip = f"{teacher.model} {teacher.weights or ''}".strip() if teacher and named else "new"
        return {"image": clip, "teacher_text": clip, "encoder": encoder if isinstance(encoder, str) else "new"}

    @property
    def needs(self) -> set[str]:
        """Sections of the model without which the stages cannot train."""
        return set().union(*(stage.needs for stage in self.stages))

    @property
    def uses(self) -> set[str]:
        """Sections of the model that some stage uses."""
        return self.needs.union(*(stage.uses for stage in self.stages))

    def _problems(self) -> Iterator[str]:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            yield "two stages have the same name"
        for index, stage in enumerate(self.stages):
            yield from self._stage_problems(index, stage)
        yield from dict.fromkeys(problem for stage in self.stages for problem in stage.problems(self))
        named = [f"stages.{i}" for i, stage in enumerate(self.stages) if "lora" in stage.train]
        if bool(named) != bool(self.lora):
            yield f"{named[0]} trains lora, which is not given" if named else "lora is given, but no stage trains it"
        if self.parallel == "fsdp" and any(stage.optimizer.startswith("lamb") for stage in self.stages):
            yield "parallel: fsdp does not work with lamb, which needs the norms of whole weights; use adamw"
        yield from self._model_problems()
        yield from without_effect(self)

    def _stage_problems(self, index: int, stage: Stage) -> Iterator[str]:
        if getattr(self.data, stage.data) is None:
            yield f"stages.{index}.data is {stage.data}, but data.{stage.data} is not given"
        if stage.wise_ft_alpha and index < len(self.stages) - 1:
            yield f"stages.{index}.wise_ft_alpha is for the last stage, whose weights become the model"
        elif stage.wise_ft_alpha and self.lora:
            yield f"stages.{index}.wise_ft_alpha is for whole weights, not for adapters: leave lora out"

    def _model_problems(self) -> Iterator[str]:
        sections = ("teacher", "encoder", "projector", "decoder")
        given = [name for name in sections if getattr(self, name) is not None]
        given += ["clip_projector"] * (self.clip_projector != "none")
        reader = {"pictures": "teacher", "text_cleaning": "projector"}
        for name in [*given, *(name for name in reader if getattr(self, name))]:
            if reader.get(name, name) not in self.uses:
                yield f"{name} is given, but no stage uses it; leave it out"
        towers = [name for name in given if name != "decoder"]  # a model folder has none
        if self.init_from and towers:
            yield f"init_from brings its own towers: leave out {', '.join(towers)}"
        elif not self.init_from and not self.needs <= set(given):
            missing = ", ".join(sorted(self.needs - set(given)))
            yield f"{missing}: missing; give them, or set init_from to a model folder that has them"
        elif not self.init_from:
            yield from self._tower_problems()

    def _tower_problems(self) -> Iterator[str]:
        trained = {tower for tower in ("teacher_text", "encoder") if any(stage.trains(tower) for stage in self.stages)}
        if self.teacher and self.teacher.weights == "train" and "teacher_text" not in trained:
            yield "teacher.weights is train, but no stage trains teacher_text"
        if isinstance(self.encoder, str) and not re.match(r"(hf|fairseq):.", self.encoder):
            yield f"encoder {self.encoder!r} is not of the form hf:NAME_OR_DIR or fairseq:DIR"
        if isinstance(self.encoder, NewEncoder):
            if self.encoder.weights == "train" and "encoder" not in trained:
                yield "the encoder is new, but no stage trains it (set encoder.weights: random to allow that)"
            if self.data.bitext is None:
                yield "a new encoder takes its vocabulary from data.bitext, which is not given"


def register_stage(section: type[Stage]) -> None:
    """Let recipes have stages of one more kind: the default of the class's field `kind` is its name."""
    kind = section.model_fields["kind"].default
    if KINDS.get(kind) is not section:
        KINDS[kind] = section
        Recipe.model_rebuild(force=True)


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. Keys that were renamed are read under their old names too, with a `RenamedKey` warning.

    Args:
        name: a path, or the name of a shipped recipe.
        overrides: `key.path=value` strings; the value is read as YAML, list items are named by their index.
    Raises:
        RecipeError: every mistake of the recipe, each with its key path, in one message.
    """
    path = find(name)
    tree = read_yaml(path)
    lines = rename_keys(tree, RENAMED)
    tree = overridden(tree, [rename_override(override, RENAMED, lines) for override in overrides])
    for line in lines + rename_keys(tree, RENAMED):
        warnings.warn(f"{path}: {line}", RenamedKey, stacklevel=2)
    return parse(tree, Recipe, str(path))


def dump(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that `load` reads back."""
    return dump_yaml(recipe.model_dump(mode="json"))
