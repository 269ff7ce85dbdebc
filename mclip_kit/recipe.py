"""The recipe: one typed YAML file that is the whole experiment, checked before any weight is loaded.

`load` reads a recipe, applies `key.path=value` overrides, and reports every mistake at once with its key path.
This module imports no torch, so a wrong recipe is refused in a blink.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from mclip_kit.errors import RecipeError

S = TypeVar("S", bound=BaseModel)
EdgeName = Literal["image-teacher_text", "image-student_text", "teacher_text-student_text"]
TOWERS = ("image", "teacher_text", "encoder", "projector", "clip_projector")
STUDENT = ("encoder", "projector")

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


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


class Data(Section):
    """Prepared folders, relative to the current folder."""

    captions: str | None = Field(None, description="A folder that `mclip-kit prepare` made: pictures and captions.")
    bitext: str | None = Field(None, description="A fairseq-binarised folder of parallel sentences.")


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
    """Which towers are trained on which edges of the triangle, with which data and optimiser."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = Field(description="A short name for logs and folders.")
    train: Annotated[list[str], Field(min_length=1)] = Field(
        description="Towers (image, teacher_text, encoder, projector, clip_projector, student) or globs of parameters."
    )
    edges: Annotated[dict[EdgeName, Edge], Field(min_length=1)] = Field(description="Edge of the triangle: its loss.")
    data: Literal["captions", "bitext"] = Field(description="Rows are image captions, or parallel sentences.")
    languages: list[str] | Literal["all"] = Field("all", description="Languages of the student's side.")
    include_english: bool = Field(
        True, description="bitext: add English->English rows (the collapse without: AltCLIP)."
    )
    language_temperature: Annotated[float, Field(ge=1)] = Field(
        1.0, description="Sampling of languages: probability ~ rows^(1/temperature)."
    )
    monolingual: bool = Field(False, description="Every batch holds one language.")
    templates: list[str] = Field([], description="Patterns with {} for the teacher's text while it is trained.")
    augment: Augment | None = Field(None, description="Augmentation of the pictures; needs the live image tower.")
    epochs: Count = Field(description="Passes over the rows.")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="Rows a step, over all processes.")
    max_tokens: Annotated[int, Field(ge=3)] = Field(
        77, description="Longest student text in tokens, special tokens included; cut beyond."
    )
    optimizer: Literal["adamw", "lamb"] = Field("adamw", description="AdamW (torch) or LAMB (timm).")
    lr: Positive = Field(description="Peak learning rate.")
    weight_decay: NonNegative = Field(
        0.01, description="Decoupled weight decay of matrices (not biases, norms, scales)."
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's moment decays.")
    eps: Positive = Field(1e-8, description="Adam's epsilon.")
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = Field("cosine", description="Shape after the warm-up.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Linear warm-up, in steps.")
    clip_norm: Positive | None = Field(None, description="Largest gradient norm; none: no clipping.")

    @model_validator(mode="after")
    def _edges_fit_the_data(self) -> "Stage":
        if self.data == "bitext" and any("image" in edge for edge in self.edges):
            raise ValueError("bitext has no pictures: its only edge is teacher_text-student_text")
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

    def trains(self, tower: str) -> bool:
        """Whether some parameter of this tower may be trained (globs are taken at their first part)."""
        heads = {pattern.split(".")[0] for pattern in self.train}
        return tower in heads or "*" in heads or (tower in STUDENT and "student" in heads)

    @property
    def vertices(self) -> set[str]:
        """The vertices of the triangle that some edge needs."""
        return vertices(self.edges)


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
    """Retrieval while training, on the captions folder."""

    split: str = Field("valid", description="Split of the captions to score while training.")
    languages: list[str] | Literal["all"] = Field("all", description="Languages to score.")
    every_epochs: Count = Field(1, description="Epochs between evaluations; step 0 and a stage's end always count.")
    keep: Literal["best", "last"] = Field("last", description="The weights with which a stage ends.")


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
    clip_projector: Literal["none", "linear"] = Field(
        "none", description="`linear`: one bias-free map from CLIP's space, shared by image and teacher text (mCLIP)."
    )
    data: Data
    stages: Annotated[list[Stage], Field(min_length=1)]
    cache: Annotated[Cache, BeforeValidator(_cache_by_name)] = Field(
        default_factory=lambda: Cache.model_validate({}),
        description="Features of frozen towers: off, pooled, tokens, auto, or a section.",
    )
    evaluation: Evaluation | None = Field(None, description="None: no evaluation while training.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    checkpoint_every: Count = Field(200, description="Steps between checkpoints; a stage's end always writes one.")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Recipe":
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

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
        if self.evaluation and self.data.captions is None:
            yield "evaluation needs data.captions"
        parts = {"teacher": self.teacher, "encoder": self.encoder, "projector": self.projector}
        given = [name for name, part in parts.items() if part is not None]
        if self.start and (given or self.clip_projector != "none"):
            yield f"start brings its own towers: leave out {', '.join(given or ['clip_projector'])}"
        elif not self.start and len(given) < len(parts):
            yield f"{', '.join(sorted(set(parts) - set(given)))}: missing, and there is no start to bring them"
        elif not self.start:
            yield from self._tower_problems()

    def _tower_problems(self) -> Iterator[str]:
        assert self.teacher
        assert self.encoder
        assert self.projector
        if self.teacher.weights == "train" and not any(stage.trains("teacher_text") for stage in self.stages):
            yield "teacher.weights is train, but no stage trains teacher_text"
        if isinstance(self.encoder, str) and not re.match(r"(hf|fairseq):.", self.encoder):
            yield f"encoder {self.encoder!r} is not of the form hf:NAME_OR_DIR or fairseq:DIR"
        if isinstance(self.encoder, NewEncoder):
            if self.encoder.weights == "train" and not any(stage.trains("encoder") for stage in self.stages):
                yield "the encoder is new, but no stage trains it (encoder.weights: random if that is meant)"
            if self.data.bitext is None:
                yield "a new encoder takes its vocabulary from data.bitext, which is not given"
        if self.projector.noise and self.projector.kind not in ("linear", "mlp"):
            yield f"projector.noise has no effect on kind {self.projector.kind}"


def shipped(kind: Literal["recipes", "data_prep"]) -> Path:
    """The folder of the shipped YAML files: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).parent
    return package / kind if (package / kind).is_dir() else package.parent / kind


def find(name: str | Path, kind: Literal["recipes", "data_prep"] = "recipes") -> Path:
    """A YAML file by path, or a shipped one by name (`quickstart`, `recipes/quickstart.yaml`).

    Raises:
        RecipeError: there is none; the message suggests the nearest name.
    """
    if Path(name).is_file():
        return Path(name)
    candidate = shipped(kind) / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    known = Path(name).parent.name in ("", kind)
    if candidate.is_file() and known:
        return candidate
    names = sorted(path.stem for path in shipped(kind).glob("*.yaml"))
    raise RecipeError(f"{name}: no such file, and none of that name is shipped{suggest(candidate.stem, names)}")


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: a path, or the name of a shipped recipe.
        overrides: `key.path=value` strings; the value is read as YAML, list items are named by their index.
    Raises:
        RecipeError: every mistake of the recipe, each with its key path, in one message.
    """
    path = find(name)
    tree = read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    return parse(tree, Recipe, str(path))


def parse(tree: dict[str, Any], schema: type[S], where: str) -> S:
    """Check a tree against a schema; every mistake is reported at once, with its key path."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        mistakes = [_explain(item, schema) for item in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(dict.fromkeys(mistakes))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; RecipeError names the line that cannot be read."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a mapping of keys to values")
    return tree


def dump(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that `load` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(tree: Any, override: str) -> None:
    keys, separator, value = override.partition("=")
    if not separator or not keys:
        raise RecipeError(f"--set {override}: write key.path=value")
    *parents, last = keys.split(".")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise RecipeError(f"--set {override}: the value is not YAML") from None
    try:
        for key in parents:
            tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
        if isinstance(tree, list):
            tree[int(last)] = parsed
        else:
            tree[last] = parsed
    except (IndexError, ValueError, TypeError, AttributeError):
        raise RecipeError(f"--set {override}: there is no such key path in the recipe") from None


def _explain(item: Any, schema: type[BaseModel]) -> str:
    location = [str(part) for part in item["loc"] if not _is_union_tag(str(part))]
    key = ".".join(location) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{suggest(location[-1], _keys(schema, location[:-1]))}"
    if item["type"] == "missing":
        return f"{key}: is missing"
    message = item["msg"].removeprefix("Value error, ")
    given = f", not {item['input']!r}" if isinstance(item["input"], str | int | float) else ""
    return f"{key}: {message}{given}"


def _is_union_tag(part: str) -> bool:
    """pydantic puts the tried member of a union into the path; a reader has no use for it."""
    return bool(re.fullmatch(r"a-name|sizes|str|dict\[.*\]|list\[.*\]|literal\[.*\]|\[key\]", part))


def _keys(schema: Any, location: list[str]) -> list[str]:
    """The known keys at a place in the schema."""
    for part in location:
        if part in getattr(schema, "model_fields", {}):
            schema = _section(schema.model_fields[part].annotation)
    return list(getattr(schema, "model_fields", {}))


def _section(annotation: Any) -> Any:
    """The Section inside an annotation such as list[Stage] or Evaluation | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in inner if section is not None), None)


def suggest(word: str, known: Sequence[str]) -> str:
    """What to append to a message about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
