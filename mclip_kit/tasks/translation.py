"""Translation with sentence contrast: a stage and a batch of sentence pairs give named loss terms.

mCLIP's multilingual text encoder (MTE, ACL 2023) learns in two stages of this kind: first a new decoder learns to
translate from the frozen encoder's token states; then the encoder learns too, and a contrast of sentences beside it
makes translations neighbours. The encoder then serves the triangle; the decoder has done its work.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_kit import losses
from mclip_kit.models.freezing import freeze_all_but, set_training_mode
from mclip_kit.models.projectors import pool
from mclip_kit.models.text_encoder import Encoder
from mclip_kit.models.translator import Decoder

NO_LABEL = -100


@dataclass
class TranslationBatch:
    """Sentences in one language and their translations into another.

    B pairs; T tokens of the longest sentence; H encoder width. Labels are what the decoder is to write behind each of
    its inputs, NO_LABEL where the next token is given.
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
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def __len__(self) -> int:
        return len(self.ids_BT)

    @property
    def tokens(self) -> int:
        """Tokens of both sides, without padding."""
        return int(self.mask_BT.sum()) + int(self.target_mask_BT.sum())


class Translation(nn.Module):
    """Encoder and decoder under the losses of one stage.

    Args:
        model: what holds both; a Translator, or a model whose encoder also serves the triangle.
        train: names of its parameters that this stage trains; all others are frozen.
        label_smoothing: of the cross-entropy (Szegedy et al., arXiv 1512.00567, section 7).
        contrast: weight and temperature of the sentence contrast; None: translation alone.
    """

    def __init__(
        self, model: Any, train: set[str], label_smoothing: float = 0.1, contrast: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing, self.contrast = label_smoothing, contrast
        self.scales = nn.ParameterDict()
        freeze_all_but(model, train)

    def train(self, mode: bool = True) -> "Translation":
        """Frozen towers stay in eval mode: no dropout."""
        super().train(mode)
        set_training_mode(self.model, mode)
        return self

    def forward(self, batch: TranslationBatch) -> dict[str, Tensor]:
        """Loss terms, unweighted, and `loss`, their weighted sum; means over the tokens, or pairs, of all processes."""
        encoder: Encoder = self.model.encoder
        states_BTH = encoder(batch.ids_BT, batch.mask_BT) if batch.states_BTH is None else batch.states_BTH
        terms = {"translation": self._translation(states_BTH, batch)}
        terms["loss"] = terms["translation"]
        if self.contrast:
            weight, temperature = self.contrast
            source_BH = pool(states_BTH.float(), batch.mask_BT, "mean")
            target_BTH = encoder(batch.target_ids_BT, batch.target_mask_BT)
            target_BH = pool(target_BTH.float(), batch.target_mask_BT, "mean")
            with torch.autocast(source_BH.device.type, enabled=False):  # logits in full precision
                terms["contrast"] = losses.contrastive(source_BH, target_BH, 1 / temperature)
            terms["loss"] = terms["translation"] + weight * terms["contrast"]
            own_B = torch.arange(len(batch), device=source_BH.device)
            terms |= losses.health(source_BH, target_BH, own_B)
        return terms

    def _translation(self, states_BTH: Tensor, batch: TranslationBatch) -> Tensor:
        """Cross-entropy a target token, in nats."""
        decoder: Decoder = self.model.decoder
        linear_BTH = decoder.languages(states_BTH, batch.source)
        hidden_BTH = decoder(batch.inputs_BT, batch.inputs_mask_BT, linear_BTH, batch.mask_BT)
        asked_BT = batch.labels_BT != NO_LABEL  # the vocabulary is large: no logits for padding
        logits_NV, labels_N = decoder.words(hidden_BTH[asked_BT]).float(), batch.labels_BT[asked_BT]
        loss = F.cross_entropy(logits_NV, labels_N, label_smoothing=self.label_smoothing)
        return loss * losses.share(asked_BT)
