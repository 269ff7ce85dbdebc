"""A translation stage's rows and batches; the loop, the checkpoints and the log are those of every stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import TranslationStage
from mclip_kit.data.batching import Plan, pad
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.datasets import TranslationRows, translation_rows
from mclip_kit.data.tokenizer import PAD, XlmrTokenizer
from mclip_kit.errors import DataError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.features.table import NoRoom
from mclip_kit.models.text_encoder import Encoder
from mclip_kit.models.translator import prompt
from mclip_kit.tasks.translation import NO_LABEL, TranslationBatch

PROMPT = 8  # positions of the decoder that are left for the language's code


def build_directions(stage: TranslationStage, recipe: Recipe, encoder: Encoder) -> TranslationRows:
    """The training pairs of a stage."""
    tokenizer, cut = encoder.tokenizer, min(stage.max_tokens, encoder.positions - PROMPT)
    return translation_rows(
        [open_bitext(folder) for folder in recipe.data.bitexts],
        stage.split,
        stage.directions,
        cut,
        lambda texts: tokenizer.encode(texts, cut),
        tokenizer.pieces(),
    )


def pairs_plan(
    stage: TranslationStage, pairs: TranslationRows, shares: Sequence[float] | None, processes: int, seed: int
) -> Plan:
    """The stage's batches: of one direction each, cut by tokens.

    Raises:
        DataError: a batch has no room for a pair on every process.
    """
    if pairs.lengths_N.max() * processes > stage.batch_tokens:
        raise DataError(
            f"stage {stage.name}: batch_tokens {stage.batch_tokens} has no room for a pair of {pairs.lengths_N.max()} "
            f"tokens on each of {processes} processes; raise it, or lower max_tokens"
        )
    return Plan(
        pairs.directions_N,
        pairs.lengths_N,
        processes,
        stage.language_temperature,
        True,
        seed,
        pairs.corpora_N,
        shares,
        tokens=stage.batch_tokens,
    )


@dataclass
class PairFeed:
    """Batches of a stage's pairs.

    Attributes:
        pairs: all of them.
        tokenizer: XLM-R's.
        states: the frozen encoder's token states of the source sides, where they are kept.
    """

    pairs: TranslationRows
    tokenizer: XlmrTokenizer
    states: Features | None = None

    def batch(self, rows: np.ndarray) -> TranslationBatch:
        """The pairs of some rows, of one direction."""
        source, target = self.pairs.directions[int(self.pairs.directions_N[rows[0]])]
        given = prompt(self.tokenizer, target)
        targets = [np.asarray(self.pairs.targets[row]) for row in rows]
        inputs = [np.concatenate([given, ids[1:-1]]) for ids in targets]
        labels = [np.concatenate([np.full(len(given) - 1, NO_LABEL), ids[1:]]) for ids in targets]
        ids_BT, mask_BT = pad([self.pairs.sources[row] for row in rows], PAD)
        target_ids_BT, target_mask_BT = pad(targets, PAD)
        inputs_BT, inputs_mask_BT = pad(inputs, PAD)
        states_BTH: Tensor | None = None
        if self.states is not None:
            states_BTH, _ = self.states.padded(rows)
        return TranslationBatch(
            source,
            mask_BT,
            ids_BT,
            target_ids_BT,
            target_mask_BT,
            inputs_BT,
            inputs_mask_BT,
            pad(labels, NO_LABEL)[0],
            states_BTH,
        )


def build_feed(
    stage: TranslationStage, recipe: Recipe, model: Any, trained: set[str], store: FeatureCache, pairs: TranslationRows
) -> PairFeed:
    """Batches, with the frozen encoder's states from the cache where that pays: where pairs come more than once."""
    tokenizer = model.encoder.tokenizer
    feed = PairFeed(pairs, tokenizer)
    live = any(name.startswith("encoder.") for name in trained)
    again = stage.steps * stage.batch_tokens > pairs.lengths_N.sum()
    wanted = recipe.cache.features
    if not live and (wanted == "tokens" or (wanted == "auto" and again)):
        try:
            feed.states = FrozenTowers(model, store).token_states(pairs.sources)
        except NoRoom as error:
            if wanted != "auto":
                raise NoRoom(f"{error}; set cache.folder, cache.dtype=int8, or cache=auto") from None
            store.log(f"{error}: computed in every step instead")
    return feed
