"""Translation with a contrastive loss of sentences: a model and a batch of sentence pairs give named loss terms.

mCLIP's multilingual text encoder (MTE, ACL 2023) is trained in two stages of this kind. First a new decoder learns to
translate from the token states of the frozen encoder. Then the encoder is trained too, and a contrastive loss between
sentences and their translations is added. The triangle uses the encoder; the decoder is not needed any more.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_kit import losses
from mclip_kit.config.stages import TranslationStage
from mclip_kit.models.projectors import pool
from mclip_kit.models.text_encoder import Encoder
from mclip_kit.models.translator import Decoder
from mclip_kit.tasks.base import StageModule

NO_LABEL = -100


@dataclass
class TranslationBatch:
    """Sentences in one language and their translations into another.

    B pairs; T tokens of the longest sentence; H encoder width. `labels_BT` holds the token after each input token, and
    NO_LABEL where that token is given.
    """

    source: str
    mask_BT: Tensor
    ids_BT: Tensor
    target_ids_BT: Tensor
    target_mask_BT: Tensor
    inputs_BT: Tensor
    inputs_mask_BT: Tensor
    labels_BT: Tensor
    states_BTH: Tensor | None = None

    def to(self, device: torch.device) -> "TranslationBatch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TranslationBatch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(self.ids_BT)

    @property
    def tokens(self) -> int:
        """Tokens of both sides, without padding."""
        return int(self.mask_BT.sum()) + int(self.target_mask_BT.sum())


class Translation(StageModule):
    """Encoder and decoder under the losses of one stage.

    Args:
        model: a model with `encoder` and `decoder`.
        stage: label smoothing of the cross-entropy (Szegedy et al., arXiv 1512.00567, section 7), and weight and
            temperature of the contrastive loss, if there is one.
        trained: names of the parameters that the stage trains; all others are frozen.
    """

    model: Any

    def __init__(self, model: nn.Module, stage: TranslationStage, trained: Collection[str]) -> None:
        super().__init__(model, trained)
        self.label_smoothing, self.contrast = stage.label_smoothing, stage.contrast

    def forward(self, batch: TranslationBatch) -> dict[str, Tensor]:
        """Unweighted loss terms and `loss`, their weighted sum; means over the tokens or pairs of all processes."""
        encoder: Encoder = self.model.encoder
        states_BTH = encoder(batch.ids_BT, batch.mask_BT) if batch.states_BTH is None else batch.states_BTH
        terms = {"translation": self._translation(states_BTH, batch)}
        terms["loss"] = terms["translation"]
        if self.contrast:
            source_BH = pool(states_BTH.float(), batch.mask_BT, "mean")
            target_BTH = encoder(batch.target_ids_BT, batch.target_mask_BT)
            target_BH = pool(target_BTH.float(), batch.target_mask_BT, "mean")
            with torch.autocast(source_BH.device.type, enabled=False):  # logits in full precision
                terms["contrast"] = losses.contrastive(source_BH, target_BH, 1 / self.contrast.temperature)
            terms["loss"] = terms["translation"] + self.contrast.weight * terms["contrast"]
            own_B = torch.arange(len(batch), device=source_BH.device)
            terms |= losses.health(source_BH, target_BH, own_B)
        return terms

    def _translation(self, states_BTH: Tensor, batch: TranslationBatch) -> Tensor:
        """Cross-entropy per target token, in nats."""
        decoder: Decoder = self.model.decoder
        linear_BTH = decoder.languages(states_BTH, batch.source)
        hidden_BTH = decoder(batch.inputs_BT, batch.inputs_mask_BT, linear_BTH, batch.mask_BT)
        asked_BT = batch.labels_BT != NO_LABEL  # the vocabulary is large: no logits for padding
        logits_NV, labels_N = decoder.words(hidden_BTH[asked_BT]).float(), batch.labels_BT[asked_BT]
        loss = F.cross_entropy(logits_NV, labels_N, label_smoothing=self.label_smoothing)
        return loss * losses.share(asked_BT)
