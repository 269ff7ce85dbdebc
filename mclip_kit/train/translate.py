"""A translation stage's rows and batches; the loop, the checkpoints and the log are those of every stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mclip_kit.data.batching import Plan, pad
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.directions import Directions, from_bitexts
from mclip_kit.data.tokenizer import PAD, XlmrTokenizer
from mclip_kit.errors import DataError
from mclip_kit.features.feed import Features, Frozen
from mclip_kit.features.store import Store
from mclip_kit.features.table import NoRoom
from mclip_kit.recipe import Recipe
from mclip_kit.stage import Translate
from mclip_kit.towers.decoder import prompt
from mclip_kit.towers.xlmr import Encoder
from mclip_kit.translation import NO_LABEL, Pairs

PROMPT = 8  # positions of the decoder that are left for the language's code


def build_directions(stage: Translate, recipe: Recipe, encoder: Encoder) -> Directions:
    """The training pairs of a stage."""
    tokenizer, cut = encoder.tokenizer, min(stage.max_tokens, encoder.positions - PROMPT)
    return from_bitexts(
        [open_bitext(folder) for folder in recipe.data.bitexts],
        stage.split,
        stage.directions,
        cut,
        lambda texts: tokenizer.encode(texts, cut),
        tokenizer.pieces(),
    )


def pairs_plan(stage: Translate, pairs: Directions, shares: Sequence[float] | None, processes: int, seed: int) -> Plan:
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

    pairs: Directions
    tokenizer: XlmrTokenizer
    states: Features | None = None

    def batch(self, rows: np.ndarray) -> Pairs:
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
        return Pairs(
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
    stage: Translate, recipe: Recipe, model: Any, trained: set[str], store: Store, pairs: Directions
) -> PairFeed:
    """Batches, with the frozen encoder's states from the cache where that pays: where pairs come more than once."""
    tokenizer = model.encoder.tokenizer
    feed = PairFeed(pairs, tokenizer)
    live = any(name.startswith("encoder.") for name in trained)
    again = stage.steps * stage.batch_tokens > pairs.lengths_N.sum()
    wanted = recipe.cache.features
    if not live and (wanted == "tokens" or (wanted == "auto" and again)):
        try:
            feed.states = Frozen(model, store).token_states(pairs.sources)
        except NoRoom as error:
            if wanted != "auto":
                raise NoRoom(f"{error}; set cache.folder, cache.dtype=int8, or cache=auto") from None
            store.say(f"{error}: computed in every step instead")
    return feed
