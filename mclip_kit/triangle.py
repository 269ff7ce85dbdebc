"""The triangle: a stage and a batch give named loss terms.

Three vertices - image, teacher_text, student_text - and on each edge that a stage names, a loss. CLIP from scratch,
AltCLIP's two stages, mCLIP's TriKD and fine-tuning differ only in edges and in what is trainable.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from mclip_kit import losses
from mclip_kit.recipe import vertices
from mclip_kit.towers.model import MultilingualClip


@dataclass
class Batch:
    """What a step sees of its rows; a vertex comes as its frozen tower's features, or as the live tower's input.

    B rows, T tokens, E CLIP width, H encoder width. A vertex that no edge needs is None.
    """

    languages_B: Tensor
    groups_B: Tensor
    pixels_BCHW: Tensor | None = None
    image_BE: Tensor | None = None
    teacher_ids_BT: Tensor | None = None
    teacher_BE: Tensor | None = None
    has_teacher_B: Tensor | None = None
    ids_BT: Tensor | None = None
    mask_BT: Tensor | None = None
    pooled_BH: Tensor | None = None
    states_BTH: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()})


@dataclass(frozen=True)
class EdgeLoss:
    """One edge's loss; the fields are those of the recipe's Edge."""

    loss: Literal["contrastive", "mse"]
    weight: float = 1.0
    temperature: float = 0.07
    learned: bool = False
    positives: Literal["image", "image_sum", "pair"] = "image"
    without_teacher: Literal["drop", "image"] = "drop"
    normalize: Literal["none", "both"] = "none"


class Triangle(nn.Module):
    """A model under the edges of one stage.

    Args:
        model: the three towers.
        edges: edge name -> its loss.
        train: names of the parameters that this stage trains; all others are frozen.
    """

    def __init__(self, model: MultilingualClip, edges: dict[str, EdgeLoss], train: set[str]) -> None:
        super().__init__()
        self.model = model
        self.edges = edges
        self.scales = nn.ParameterDict(
            {name: torch.tensor(math.log(1 / edge.temperature)) for name, edge in edges.items() if edge.learned}
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in train)

    def train(self, mode: bool = True) -> "Triangle":
        """Frozen towers stay in eval mode: no dropout, no running statistics."""
        super().train(mode)
        for tower in self.model.children():
            tower.train(mode and any(parameter.requires_grad for parameter in tower.parameters()))
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms by edge, unweighted, and `loss`, their weighted sum."""
        embeddings = {vertex: getattr(self, vertex)(batch) for vertex in sorted(vertices(self.edges))}
        terms = {name: self._term(name, embeddings, batch) for name in self.edges}
        total = sum((self.edges[name].weight * term for name, term in terms.items()), torch.zeros(()))
        return {**terms, "loss": total}

    def image(self, batch: Batch) -> Tensor:
        """Image embeddings (B, D)."""
        features = self.model.image(batch.pixels_BCHW) if batch.image_BE is None else batch.image_BE
        projected: Tensor = self.model.clip_projector(features)
        return projected

    def teacher_text(self, batch: Batch) -> Tensor:
        """Teacher text embeddings (B, D); rows without a teacher text hold anything."""
        features = self.model.teacher_text(batch.teacher_ids_BT) if batch.teacher_BE is None else batch.teacher_BE
        projected: Tensor = self.model.clip_projector(features)
        return projected

    def student_text(self, batch: Batch) -> Tensor:
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
        """One over the temperature of a contrastive edge."""
        if name in self.scales:
            with torch.no_grad():  # the parameter itself, as CLIP does: clamping its exp would leave no gradient
                self.scales[name].clamp_(max=math.log(losses.MAX_SCALE))
            return self.scales[name].exp()
        return 1 / self.edges[name].temperature

    def _term(self, name: str, embeddings: dict[str, Tensor], batch: Batch) -> Tensor:
        edge = self.edges[name]
        left, right = (embeddings[vertex].float() for vertex in name.split("-"))
        keep_B = batch.has_teacher_B if "teacher_text" in name else None
        if edge.without_teacher == "image" and keep_B is not None:
            left, keep_B = torch.where(keep_B[:, None], left, embeddings["image"].float()), None
        with torch.autocast(left.device.type, enabled=False):  # logits in full precision
            if edge.loss == "mse":
                return losses.mse(right, left, edge.normalize, keep_B)
            groups_B = None if edge.positives == "pair" else batch.groups_B
            over: Literal["mean", "sum"] = "sum" if edge.positives == "image_sum" else "mean"
            return losses.contrastive(left, right, self.scale(name), groups_B, keep_B, over)
