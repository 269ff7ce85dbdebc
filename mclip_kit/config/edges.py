"""Edges of the triangle: their names, and the loss on each with its keys."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mclip_kit.config.yaml import Count, Number, Positive, Section

EDGES = ("image-teacher_text", "image-student_text", "teacher_text-student_text", "centroid-student_text")
"""`centroid` is no tower: it is where the student puts a row and its translations on average as the stage starts."""
COMPARES_ROWS = frozenset({"contrastive", "sigmoid", "kl", "relational"})
"""Losses that compare rows with each other; the others are means over rows."""
PAIRS = frozenset({"contrastive", "sigmoid"})
"""Losses that know right pairs from wrong ones, and may learn their temperature."""
START = {"sigmoid": 0.1}
"""Loss -> its default temperature, where it is not the usual one: SigLIP starts at a scale of 10."""


def base(name: str) -> str:
    """The edge that a key of `edges` names; one may have several losses: `EDGE`, `EDGE+WORD`, ..."""
    return name.partition("+")[0]


def _edge_name(name: str) -> str:
    edge, plus, word = name.partition("+")
    if edge not in EDGES or (plus and not word.isidentifier()):
        raise ValueError(f"give {', '.join(EDGES)}, or one of these with a + and a word of yours for a second loss")
    return name


EdgeName = Annotated[str, AfterValidator(_edge_name)]


def _widths(dims: list[Any]) -> list[Any]:
    twice = next((width for place, width in enumerate(dims) if width in dims[:place]), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    if dims and "full" not in dims:
        raise ValueError("full is missing: without it the whole embedding is not trained")
    if dims == ["full"]:
        raise ValueError("full alone is what a loss without dims has: leave dims out, or add a width")
    return dims


class Edge(Section):
    """The loss on one edge of the triangle."""

    loss: Literal["contrastive", "sigmoid", "mse", "cosine", "kl", "relational"] = Field(
        description="contrastive: symmetric InfoNCE; sigmoid: SigLIP's; mse: mean squared error; cosine: one minus the "
        "cosine; kl: the student's distribution over the batch follows the teacher's; relational: similarities inside "
        "the batch follow the other side's."
    )
    weight: Positive = Field(1.0, description="Factor of this term in the sum.")
    temperature: Positive = Field(
        0.07,
        description="contrastive, sigmoid, kl: the true temperature (at the start, when learned); sigmoid: 0.1 if it "
        "is not given.",
    )
    bias: Annotated[Number, Field(allow_inf_nan=False)] = Field(
        -10.0, description="sigmoid: added to the logits (at the start, when learned)."
    )
    learned: bool = Field(
        False,
        description="contrastive, sigmoid: learn the temperature, with exp(scale) clamped at 100; sigmoid: and the "
        "bias.",
    )
    clamp: Literal["scale", "exp"] = Field(
        "scale",
        description="learned: clamp the learned scale itself (CLIP), or its exp, without a gradient there (mCLIP).",
    )
    positives: Literal["image", "image_sum", "pair"] = Field(
        "image",
        description="contrastive, sigmoid: all texts of the same image are positives, or only the row's own text is. "
        "contrastive: their log-probabilities are averaged, or summed (mCLIP's released fine-tuning).",
    )
    duplicates: Literal["mask", "negatives"] = Field(
        "negatives",
        description="contrastive, sigmoid: the same text at another image is a negative (CLIP), or left out.",
    )
    missing_teacher: Literal["drop", "image"] = Field(
        "drop",
        description="teacher_text-student_text: rows without a text in the teacher's language are left out, or use the "
        "image's embedding instead (mCLIP's released code).",
    )
    normalize: Literal["none", "both"] = Field("none", description="mse: L2-normalise both sides first.")
    dims: Annotated[list[Count | Literal["full"]], AfterValidator(_widths)] = Field(
        [],
        description="Widths, such as [32, 64, full]: the loss is the mean over these prefixes of both sides "
        "(Matryoshka, arXiv 2205.13147), so that embeddings may be cut there. Empty: the full width alone.",
    )

    @model_validator(mode="after")
    def _temperature_of_the_loss(self) -> "Edge":
        if "temperature" not in self.model_fields_set and self.loss in START:
            self.temperature = START[self.loss]
        return self

    @model_validator(mode="after")
    def _learned_temperature_can_move(self) -> "Edge":
        if self.learned and self.loss not in PAIRS:
            only = "has a fixed temperature" if self.loss == "kl" else "has no temperature to be learned"
            raise ValueError(f"{self.loss} {only}")
        if self.clamp != "scale" and not self.learned:
            raise ValueError("clamp has no effect: the temperature is not learned")
        if self.learned and self.temperature < 0.01:
            raise ValueError(
                f"a learned temperature must be at least 0.01, where it is clamped, not {self.temperature}"
            )
        if self.positives == "image_sum" and self.loss == "sigmoid":
            raise ValueError("positives: image_sum is for contrastive; sigmoid sums over pairs anyway, use image")
        return self


def ends(name: str, edge: Edge) -> set[str]:
    """The vertices that a loss needs: the edge's ends; of kl on image-student_text the teacher's text, too."""
    own = set(base(name).split("-"))
    return own | {"teacher_text"} if edge.loss == "kl" and "image" in own else own


def vertices(edges: Mapping[Any, Edge]) -> set[str]:
    """The vertices that some edges need: see `ends`; and the image where it replaces a missing teacher text."""
    found = {vertex for name, edge in edges.items() for vertex in ends(name, edge)}
    return found | {"image"} if any(edge.missing_teacher == "image" for edge in edges.values()) else found


def drops_rows(name: str, edge: Edge) -> bool:
    """Whether rows without a text in the teacher's language have no part in a loss."""
    return "teacher_text" in ends(name, edge) and edge.missing_teacher == "drop"
