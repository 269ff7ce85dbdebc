"""The triangle: a model, the edges of a stage and a batch give named loss terms.

Three vertices - image, teacher_text, student_text - and on each edge that a stage names, a loss. CLIP from scratch,
AltCLIP's two stages, mCLIP's TriKD and fine-tuning differ only in edges and in what is trainable.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mclip_kit import losses
from mclip_kit.config.edges import Edge, base, ends, vertices
from mclip_kit.losses import distillation
from mclip_kit.losses.matryoshka import matryoshka
from mclip_kit.losses.sigmoid import sigmoid
from mclip_kit.models.encoding import over_templates
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.base import StageModule

BIAS = ":bias"  # after the name of an edge: what it learns besides its scale
HEALTH = ("teacher_text-student_text", "image-student_text", "image-teacher_text", "centroid-student_text")
"""The first that a stage has is measured."""


@dataclass
class TriangleBatch:
    """The rows of a step; a vertex is given as features of its frozen tower, or as the input of its live tower.

    B rows, T tokens, E CLIP width, H encoder width. A vertex that no edge needs is None; the ids of a frozen teacher's
    text in K templates are (B, K, T). Rows with the same number in
    `groups_B` are positives of each other; rows with the same number in `texts_B` have the same text.
    """

    languages_B: Tensor
    groups_B: Tensor
    texts_B: Tensor | None = None
    pixels_BCHW: Tensor | None = None
    image_BE: Tensor | None = None
    teacher_ids_BT: Tensor | None = None
    teacher_BE: Tensor | None = None
    has_teacher_B: Tensor | None = None
    ids_BT: Tensor | None = None
    mask_BT: Tensor | None = None
    pooled_BH: Tensor | None = None
    states_BTH: Tensor | None = None
    centroid_BD: Tensor | None = None

    def to(self, device: torch.device) -> "TriangleBatch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TriangleBatch":
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return TriangleBatch(**{name: change(tensor) for name, tensor in given.items()})

    def __len__(self) -> int:
        return len(self.groups_B)

    @property
    def tokens(self) -> int:
        """Tokens of the student's texts, without padding; 0 if pooled states are read."""
        return 0 if self.mask_BT is None else int(self.mask_BT.sum())

    def split(self, size: int) -> list["TriangleBatch"]:
        """Parts of at most `size` rows, each no wider than its longest text."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return [
            TriangleBatch(**{name: tensor[start : start + size] for name, tensor in given.items()}).trimmed()
            for start in range(0, len(self), size)
        ]

    def trimmed(self) -> "TriangleBatch":
        """The same rows without columns that are padding in all of them."""
        if self.mask_BT is None:
            return self
        width = int(self.mask_BT.sum(1).max())
        names = [name for name in ("ids_BT", "mask_BT", "states_BTH") if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[:, :width] for name in names})


@dataclass(frozen=True)
class Slopes:
    """Gradients of a loss with respect to embeddings and learned scales."""

    embeddings: dict[str, Tensor]
    scales: dict[str, Tensor]

    def of_rows(self, rows: slice, scales: bool) -> "Slopes":
        """The gradients of some rows; with or without those of the scales."""
        return Slopes({name: slope[rows] for name, slope in self.embeddings.items()}, self.scales if scales else {})

    def surrogate(self, embeddings: dict[str, Tensor], scales: nn.ParameterDict) -> Tensor:
        """A scalar that has these gradients."""
        live = [name for name in self.embeddings if embeddings[name].requires_grad]
        parts = [(embeddings[name].float() * self.embeddings[name]).sum() for name in live]
        return torch.stack([*parts, *(scales[name] * slope for name, slope in self.scales.items())]).sum()


class Triangle(StageModule):
    """A model under the edges of one stage.

    Args:
        model: the three towers.
        edges: name of an edge -> its loss.
        trained: names of the parameters that the stage trains; all others are frozen.
    """

    model: Any

    def __init__(self, model: MultilingualClip, edges: Mapping[Any, Edge], trained: Collection[str]) -> None:
        super().__init__(model, trained)
        self.edges = edges
        learned = {name: edge for name, edge in edges.items() if edge.learned}
        scales = {name: torch.tensor(math.log(1 / edge.temperature)) for name, edge in learned.items()}
        biases = {name + BIAS: torch.tensor(edge.bias) for name, edge in learned.items() if edge.loss == "sigmoid"}
        self.scales = nn.ParameterDict(scales | biases)

    @torch.no_grad()
    def finish(self) -> None:
        """Keep the learned temperature of a teacher that was trained, and the bias if its CLIP has one."""
        for name, edge in self.edges.items():
            if edge.learned and base(name) == "image-teacher_text":
                self.model.teacher_scale.copy_(self.scales[name])
                bias = getattr(self.model.clip[0].model, "logit_bias", None)
                if bias is not None and name + BIAS in self.scales:
                    bias.copy_(self.scales[name + BIAS])

    def forward(
        self, batch: TriangleBatch, want: "Literal['terms', 'embeddings'] | Slopes" = "terms"
    ) -> dict[str, Tensor]:
        """Loss terms of some rows, or what gradient caching needs of them: DDP watches `forward` alone.

        Args:
            batch: the rows.
            want: `terms`: loss terms by edge, unweighted, and `loss`, their weighted sum; `embeddings`: embeddings by
                vertex; slopes: a `loss` that has these gradients.
        """
        embeddings = self.embed(batch)
        if want == "embeddings":
            return embeddings
        if isinstance(want, Slopes):
            return {"loss": want.surrogate(embeddings, self.scales)}
        return self.terms(embeddings, batch)

    def embed(self, batch: TriangleBatch) -> dict[str, Tensor]:
        """Embeddings (B, D) of the vertices that the edges need."""
        return {vertex: getattr(self, vertex)(batch) for vertex in sorted(vertices(self.edges))}

    def terms(self, embeddings: dict[str, Tensor], batch: TriangleBatch) -> dict[str, Tensor]:
        """Loss terms of embeddings; of `batch`, only `groups_B`, `texts_B` and `has_teacher_B` are read."""
        terms = {name: self._term(name, embeddings, batch) for name in self.edges}
        total = sum((self.edges[name].weight * term for name, term in terms.items()), torch.zeros(()))
        return {**terms, "loss": total, **self._health(embeddings, batch)}

    def _health(self, embeddings: dict[str, Tensor], batch: TriangleBatch) -> dict[str, Tensor]:
        """Collapse measures of the student's embeddings, or of the teacher's where there is no student."""
        named = {base(name) for name in self.edges}
        name = next((name for name in HEALTH if name in named), None)
        if name is None:
            return {}
        other, text = name.split("-")
        keep_B = batch.has_teacher_B if "teacher_text" in name else None
        return losses.health(embeddings[text], embeddings[other], batch.groups_B, keep_B)

    def image(self, batch: TriangleBatch) -> Tensor:
        """Image embeddings (B, D)."""
        features = self.model.image(batch.pixels_BCHW) if batch.image_BE is None else batch.image_BE
        projected: Tensor = self.model.clip_projector(features)
        return projected

    def teacher_text(self, batch: TriangleBatch) -> Tensor:
        """Teacher text embeddings (B, D); rows without a teacher text are undefined."""
        features = batch.teacher_BE
        if features is None:
            assert batch.teacher_ids_BT is not None
            features = over_templates(self.model.teacher_text, batch.teacher_ids_BT)
        projected: Tensor = self.model.clip_projector(features)
        return projected

    def centroid(self, batch: TriangleBatch) -> Tensor:
        """Centroids of translations (B, D), constants."""
        assert batch.centroid_BD is not None
        return batch.centroid_BD

    def student_text(self, batch: TriangleBatch) -> Tensor:
        """Student embeddings (B, D)."""
        if batch.pooled_BH is not None:
            head: Tensor = self.model.projector.head(batch.pooled_BH)
            return head
        assert batch.mask_BT is not None
        states_BTH = batch.states_BTH
        if states_BTH is None:
            states_BTH = self.model.encoder(batch.ids_BT, batch.mask_BT)
        embedding: Tensor = self.model.projector(states_BTH, batch.mask_BT)
        return embedding

    def scale(self, name: str) -> Tensor | float:
        """One over the temperature of an edge that has one."""
        if name in self.scales:
            if self.edges[name].clamp == "exp":
                return self.scales[name].exp().clamp(max=losses.MAX_SCALE)
            with torch.no_grad():  # the parameter itself, as CLIP does: clamping its exp would leave no gradient
                self.scales[name].clamp_(max=math.log(losses.MAX_SCALE))
            return self.scales[name].exp()
        return 1 / self.edges[name].temperature

    def _term(self, name: str, embeddings: dict[str, Tensor], batch: TriangleBatch) -> Tensor:
        edge = self.edges[name]
        left, right = (embeddings[vertex].float() for vertex in base(name).split("-"))
        keep_B = batch.has_teacher_B if "teacher_text" in ends(name, edge) else None
        if edge.missing_teacher == "image" and keep_B is not None:
            left, keep_B = torch.where(keep_B[:, None], left, embeddings["image"].float()), None
        sides = [left, right]
        if edge.loss == "kl":
            sides.append(embeddings["teacher_text"].float() if "image" in base(name) else left)
        with torch.autocast(left.device.type, enabled=False):  # logits in full precision
            loss = partial(self._loss, name, self.scale(name), keep_B, batch)
            if not edge.dims:
                return loss(*sides)
            return matryoshka(loss, [left.shape[1] if width == "full" else width for width in edge.dims], *sides)

    def _loss(
        self,
        name: str,
        scale: Tensor | float,
        keep_B: Tensor | None,
        batch: TriangleBatch,
        left: Tensor,
        right: Tensor,
        teacher: Tensor | None = None,
    ) -> Tensor:
        """The loss of an edge, of its two sides or of prefixes of them; `teacher`: whom kl follows."""
        edge = self.edges[name]
        if edge.loss == "mse":
            return losses.mse(right, left, edge.normalize, keep_B)
        if edge.loss == "cosine":
            return distillation.cosine(right, left, keep_B)
        if edge.loss == "relational":
            return distillation.relational(right, left, keep_B)
        if edge.loss == "kl":
            assert teacher is not None
            return distillation.kl(right, teacher, left, scale, keep_B)
        groups_B = None if edge.positives == "pair" else batch.groups_B
        texts_B = batch.texts_B if edge.duplicates == "mask" else None
        if edge.loss == "sigmoid":
            bias = self.scales[name + BIAS] if edge.learned else edge.bias
            return sigmoid(left, right, scale, bias, groups_B, keep_B, texts_B)
        over: Literal["mean", "sum"] = "sum" if edge.positives == "image_sum" else "mean"
        return losses.contrastive(left, right, scale, groups_B, keep_B, over, texts_B)
