"""The task of translation stages: their rows, batches and trial steps."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mclip_kit.config.model import NewDecoder
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import TranslationStage
from mclip_kit.data.batching import Plan, pad
from mclip_kit.data.bitext import find_directions, open_bitext
from mclip_kit.data.manifest import bitext_stamps
from mclip_kit.data.tokenizer import PAD, XlmrTokenizer
from mclip_kit.data.translation_rows import TranslationRows, open_translation_rows, write_translation_rows
from mclip_kit.errors import DataError
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.features.filling import NoRoom
from mclip_kit.models.translator import new_decoder, prompt
from mclip_kit.tasks.base import Context, Kept, Task, Trial
from mclip_kit.tasks.stage_batches import StageBatches
from mclip_kit.tasks.translation_loss import NO_LABEL, Translation, TranslationBatch

PROMPT = 8  # positions of the decoder that are kept free for the language's code


class TranslationBatches(StageBatches):
    """Batches of sentence pairs, each of one direction, cut by tokens.

    Args:
        rows: the pairs.
        stage: says how large a batch is.
        context: of the stage.
        states: token states of the source sides, if the encoder is frozen and they are kept.
    Raises:
        DataError: a batch has no room for one pair on every process.
    """

    def __init__(
        self, rows: TranslationRows, stage: TranslationStage, context: Context, states: Features | None = None
    ) -> None:
        self.rows, self.steps, self._states = rows, stage.steps, states
        self._tokenizer: XlmrTokenizer = context.model.encoder.tokenizer
        longest = rows.lengths_N.max()
        if longest * context.processes > stage.batch_tokens:
            raise DataError(
                f"stage {stage.name}: batch_tokens {stage.batch_tokens} has no room for a pair of {longest} tokens on "
                f"each of {context.processes} processes; raise it, or lower max_tokens"
            )
        self.plan = Plan(
            rows.directions_N,
            rows.lengths_N,
            context.processes,
            stage.language_temperature,
            True,
            context.seed,
            rows.corpora_N,
            context.recipe.data.shares,
            tokens=stage.batch_tokens,
            kept=rows.folder if context.cache.shares else None,
            window=stage.shuffle_window,
        )

    def files(self, rows: np.ndarray) -> list[Path]:
        """The copies of token states."""
        return [] if self._states is None else self._states.files(rows)

    def batch(self, rows: np.ndarray) -> TranslationBatch:
        """The batch of some pairs of one direction, on the CPU."""
        source, target = self.rows.directions[int(self.rows.directions_N[rows[0]])]
        given = prompt(self._tokenizer, target)
        targets = [np.asarray(self.rows.targets[row]) for row in rows]
        inputs = [np.concatenate([given, ids[1:-1]]) for ids in targets]
        labels = [np.concatenate([np.full(len(given) - 1, NO_LABEL), ids[1:]]) for ids in targets]
        ids_BT, mask_BT = pad([self.rows.sources[row] for row in rows], PAD)
        target_ids_BT, target_mask_BT = pad(targets, PAD)
        inputs_BT, inputs_mask_BT = pad(inputs, PAD)
        return TranslationBatch(
            source,
            mask_BT,
            ids_BT,
            target_ids_BT,
            target_mask_BT,
            inputs_BT,
            inputs_mask_BT,
            pad(labels, NO_LABEL)[0],
            None if self._states is None else self._states.padded(rows)[0],
        )


class TranslationTask(Task):
    """A stage that trains a decoder, and perhaps the encoder, to translate."""

    stage: TranslationStage
    evaluation: ClassVar[str] = "translation"

    @classmethod
    def extend_model(cls, model: Any, recipe: Recipe) -> None:
        """Give the model a new decoder, with a linear layer per source language if a stage asks for them."""
        sizes = recipe.decoder or NewDecoder.model_validate({})
        bitexts = [open_bitext(folder) for folder in recipe.data.bitexts]
        stages = [stage for stage in recipe.stages if isinstance(stage, TranslationStage) and stage.language_linear]
        sources = {s for stage in stages for s, _ in find_directions(bitexts, stage.split, stage.directions)}
        model.decoder = new_decoder(model.encoder, **sizes.model_dump(), languages=sorted(sources))

    @property
    def languages(self) -> list[str]:
        """Those that are read or written; none for a model with a projector, whose student learns none of them."""
        return [] if hasattr(self.context.model, "projector") else self.rows.languages

    @cached_property
    def rows(self) -> TranslationRows:  # type: ignore[override]
        """The training pairs."""
        stage, encoder, data = self.stage, self.context.model.encoder, self.context.recipe.data
        longest = min(stage.max_tokens, encoder.positions - PROMPT)
        bitexts = [open_bitext(folder) for folder in data.bitexts]
        facts = {
            "translation": find_directions(bitexts, stage.split, stage.directions),
            "split": stage.split,
            "max_tokens": longest,
            "tokenizer": encoder.tokenizer.identity(),
            "bitext": bitext_stamps(data.bitexts),
        }

        def write(folder: Path) -> None:
            tokenize = partial(encoder.tokenizer.encode, max_tokens=longest)
            given = (stage.split, stage.directions, longest, tokenize, encoder.tokenizer.pieces())
            write_translation_rows(folder, bitexts, *given)

        rows = self.context.cache.rows(facts, write, open_translation_rows)
        self.check_window(len(rows))
        for side, tokens in enumerate((rows.sources, rows.targets)):
            own = [direction[side] for direction in rows.directions]
            languages = sorted(set(own))
            numbers = np.array([languages.index(language) for language in own], np.int16)
            self.check_spelling(tokens, languages, numbers[rows.directions_N])
        return rows

    @cached_property
    def batches(self) -> TranslationBatches:
        """The batches of the pairs."""
        return TranslationBatches(self.rows, self.stage, self.context, self._states())

    def _states(self) -> Features | None:
        """The frozen encoder's states of the source sides, from the cache if they are read more than once."""
        live = any(name.startswith("encoder.") for name in self.context.trained)
        repeats = self.stage.steps * self.stage.batch_tokens > self.rows.lengths_N.sum()
        wanted, cache = self.context.recipe.cache.features, self.context.cache
        if live or not (wanted == "tokens" or (wanted == "auto" and repeats)):
            return None
        try:
            rows = self.rows
            towers = FrozenTowers(self.context.model, cache)
            return towers.token_states(rows.sources, rows.source_lengths_N, kept=rows.folder)
        except NoRoom as error:
            if wanted != "auto":
                raise NoRoom(f"{error}; set cache.folder, cache.dtype=int8, or cache=auto") from None
            cache.do_without(error)
            return None

    def module(self) -> Translation:
        """Encoder and decoder under the losses of the stage."""
        return Translation(self.context.model, self.stage, self.context.trained)

    def trial(self) -> Trial:
        """A step on a few pairs of one direction; the encoder runs in every step, also where its states are kept."""
        stage, rows = self.stage, self.rows
        batches = TranslationBatches(rows, stage, self.context)
        own = np.flatnonzero(rows.directions_N == rows.directions_N[0])

        def sample(count: int) -> tuple[TranslationBatch, list[Kept]]:
            some = np.random.default_rng(0).choice(own, min(count, len(own)), replace=False)
            return batches.batch(some).to(self.context.model.device), []

        share = max(2, int(stage.batch_tokens / self.context.processes / rows.lengths_N.mean()))
        size = f"{stage.batch_tokens:,} tokens"
        return Trial(len(rows), stage.steps, size, share, share, sample, advice="checkpointing")
