"""The task of stages on edges of the triangle: their rows, batches, gradients and trial steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mclip_kit.config.edges import COMPARES_ROWS, drops_rows
from mclip_kit.config.recipe import Cache, Recipe
from mclip_kit.config.stages import TriangleStage
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.datasets import rows_from_bitexts, rows_from_captions
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.manifest import bitext_stamps, file_stamps
from mclip_kit.data.sequences import blocks_of
from mclip_kit.data.triangle_rows import RowStream, TriangleRows, open_rows, write_rows
from mclip_kit.data.unpaired import held_out_of, read_unpaired, unpaired_stamps
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.features import hashing
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.device import autocast
from mclip_kit.models.encoding import CLEANERS, embed_by_length, over_templates
from mclip_kit.models.freezing import evaluating
from mclip_kit.tasks import mining
from mclip_kit.tasks.base import Kept, Seed, Task, Trial, full_batch, timed
from mclip_kit.tasks.centroids import have_translations, open_centroids, write_centroids
from mclip_kit.tasks.grad_cache import accumulated, cached
from mclip_kit.tasks.triangle_batches import TriangleBatches
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch

TEXTS = 256  # that are embedded at once
BYTES = {"fp16": 2, "fp32": 4, "int8": 1}  # of a stored number


class TriangleTask(Task):
    """A stage on edges of the triangle."""

    stage: TriangleStage
    evaluation: ClassVar[str] = "retrieval"

    @classmethod
    def extend_model(cls, model: Any, recipe: Recipe) -> None:
        """Keep with the model at which widths its embeddings may be cut after the last stage of the student.

        Raises:
            RecipeError: a width is not below that of the embeddings.
        """
        for index, stage in enumerate(recipe.stages):
            if isinstance(stage, TriangleStage):
                widths = {width for edge in stage.edges.values() for width in edge.dims if isinstance(width, int)}
                wrong = [width for width in widths if width >= model.width]
                if wrong:
                    raise RecipeError(
                        f"stages.{index}.edges: dims: {max(wrong)} is not below {model.width}, the width of the "
                        "embeddings; leave it out: full stands for that"
                    )
                model.dims = sorted(widths) if "student_text" in stage.vertices else model.dims

    @property
    def languages(self) -> list[str]:
        """Those of the rows, if the student is on an edge."""
        return self.rows.languages if "student_text" in self.stage.vertices else []

    @cached_property
    def rows(self) -> TriangleRows:  # type: ignore[override]
        """The training rows.

        Raises:
            DataError: the data has none for the stage, no row fits an edge, or there are too few for a batch.
        """
        rows = self._stored()
        if self.stage.mine:
            line = mining.describe(rows.folder if self._mines else None, self.context.cache.root)
            self.context.warn(f"stage {self.stage.name}: {line}")
        if self._mines or not self.stage.mine:  # else mined rows are missing
            self._check(rows)
        if "student_text" in self.stage.vertices:
            self.check_spelling(rows.tokens, rows.languages, rows.languages_N)
        return rows

    def _stored(self) -> TriangleRows:
        return self.context.cache.rows(self._row_facts(), lambda part: write_rows(part, self._stream(part)), open_rows)

    @property
    def _longest(self) -> int:
        return int(min(self.stage.max_tokens, self.context.model.encoder.positions))

    def _row_facts(self) -> dict[str, Any]:
        """Everything that decides the rows."""
        stage, model, data = self.stage, self.context.model, self.context.recipe.data
        facts: dict[str, Any] = {
            "split": stage.split,
            "languages": stage.languages,
            "teacher": TEACHER_LANGUAGE,
            "max_tokens": self._longest,
            "tokenizer": model.encoder.tokenizer.identity(),
            "cleaning": model.text_cleaning,
        }
        if stage.mine and self._mines:
            encoder = FrozenTowers(model, self.context.cache).weights("encoder")
            facts["mine"] = [stage.mine.model_dump(), encoder, str(self.context.cache.precision), list(data.unpaired)]
            facts["mine"].append(unpaired_stamps(data.unpaired.values(), self._prepared_folders))
        if stage.data == "captions":
            assert self.context.captions is not None
            folder = self.context.captions.folder.absolute()
            tables = [path for name in ("images", "captions", "uncaptioned") for path in folder.glob(f"{name}.*")]
            return facts | {"captions": file_stamps(tables)}
        return facts | {"bitext": bitext_stamps(data.bitexts), "english": stage.include_english}

    @property
    def _mines(self) -> bool:
        """Whether mined rows are added; not where nothing is kept, as in a dry run, since it takes long."""
        return self.stage.mine is not None and self.context.cache.writes

    def _stream(self, folder: Path) -> RowStream:
        """The rows, read from the data, and those that are mined, of which the folder gets an account."""
        stream, stage, data = self._prepared(), self.stage, self.context.recipe.data
        if stage.mine is None or not self._mines:
            return stream
        held_N = held_out_of(self._prepared_folders)
        codes = list(dict.fromkeys([*stream.languages, *data.unpaired]))
        texts = {codes.index(name): read_unpaired(name, path, held_N) for name, path in data.unpaired.items()}
        given = TriangleTask(stage.model_copy(update={"mine": None}), self.context)._stored()
        model, cache, count = self.context.model, self.context.cache, sum(len(text.lines) for text in texts.values())
        mined = mining.mined_blocks(folder, model, cache, given, texts, stage, self._longest)
        return RowStream(codes, stream.count + count, chain(stream.blocks, mined))

    @property
    def _prepared_folders(self) -> list[Path]:
        captions = self.context.captions
        folders = [Path(place).parent for place in self.context.recipe.data.bitexts]
        return [*folders, captions.folder] if captions else folders

    def _prepared(self) -> RowStream:
        """The rows of the prepared folders."""
        stage, model = self.stage, self.context.model
        tokenize = partial(model.student_tokens, max_tokens=self._longest)
        if stage.data == "captions":
            assert self.context.captions is not None
            return rows_from_captions(self.context.captions, stage.split, stage.languages, TEACHER_LANGUAGE, tokenize)
        assert isinstance(stage.split, str)
        return rows_from_bitexts(
            [open_bitext(folder) for folder in self.context.recipe.data.bitexts],
            stage.split,
            stage.languages,
            TEACHER_LANGUAGE,
            include_teacher_language=stage.include_english,
            max_tokens=self._longest,
            tokenize=tokenize,
            pieces=model.encoder.tokenizer.pieces(),
            clean=CLEANERS[model.text_cleaning],
        )

    def _check(self, rows: TriangleRows) -> None:
        stage = self.stage
        self.check_window(len(rows))
        if all(drops_rows(name, edge) for name, edge in stage.edges.items()) and not rows.has_teacher_N.any():
            raise DataError(f"stage {stage.name}: no row has a text in {TEACHER_LANGUAGE}, which every edge needs")
        if "centroid" in stage.vertices and not have_translations(rows):
            raise DataError(
                f"stage {stage.name}: centroid needs translations, but no two rows in different languages have the "
                + ("same picture" if stage.data == "captions" else f"same text in {TEACHER_LANGUAGE}")
            )
        counts = np.array([len(rows)])
        if stage.monolingual:
            parts = (rows.languages_N[part] for part in blocks_of(len(rows)))
            counts = np.sum([np.bincount(part, minlength=len(rows.languages)) for part in parts], axis=0)
        if np.min(counts) < stage.batch_size:
            where = f" in {rows.languages[int(np.argmin(counts))]}" if stage.monolingual else ""
            raise DataError(
                f"stage {stage.name}: {np.min(counts)} rows{where} are too few for a batch of {stage.batch_size}; "
                "lower batch_size"
            )

    @property
    def live(self) -> set[str]:
        """The towers that compute in every step, because they are trained or their input changes."""
        live = {name.split(".")[0] for name in self.context.trained}
        return live | {"image"} if self.stage.augment else live

    def _batches(self, cache: FeatureCache, section: Cache) -> TriangleBatches:
        recipe = self.context.recipe
        return TriangleBatches(
            FrozenTowers(self.context.model, cache),
            self.rows if cache.shares else replace(self.rows, folder=None),
            self.stage,
            self.live,
            section,
            self.context.captions,
            self.context.report_unreadable,
            recipe.data.shares if self.stage.data == "bitext" else None,
            self.context.seed,
        )

    @cached_property
    def batches(self) -> TriangleBatches:
        """The batches of the rows; features of frozen towers are in the cache then.

        Raises:
            DataError: too many pictures are unreadable, or too few rows are left.
        """
        batches = self._batches(self.context.cache, self.context.recipe.cache)
        self._check_steps(batches)
        return batches

    def _check_steps(self, batches: TriangleBatches) -> None:
        if not batches.steps_per_epoch:
            raise DataError(
                f"stage {self.stage.name}: without unreadable pictures there are too few rows for a batch of "
                f"{self.stage.batch_size}; lower batch_size"
            )

    @property
    def needs_start(self) -> bool:
        """Whether some edge has the centroids of the stage's start."""
        return "centroid" in self.stage.vertices

    def see_start(self) -> None:
        """Give the batches the centroids of the student as it is now, from the cache if it has them."""
        model, cache = self.context.model, self.context.cache
        weights = {tower: hashing.hash_weights(getattr(model, tower)) for tower in ("encoder", "projector")}
        facts = {"rows": self._row_facts(), "centroids of": weights, "precision": str(cache.precision)}
        self.batches.centroids = cache.rows(
            facts, lambda part: write_centroids(part, self.rows, self._embed), open_centroids
        )

    def _embed(self, tokens: Sequence[np.ndarray]) -> Tensor:
        """Embeddings (N, D) of texts by the student as it is now, without dropout."""
        model = self.context.model
        with evaluating(model), autocast(model.device, self.context.cache.precision):
            return embed_by_length(tokens, [len(ids) for ids in tokens], model.embed_tokens, model.width, TEXTS)

    def module(self) -> Triangle:
        """The model under the edges of the stage."""
        return Triangle(self.context.model, self.stage.edges, self.context.trained)

    def gradients(self, accelerator: Accelerator, module: nn.Module, batch: Any, seed: Seed) -> dict[str, Tensor]:
        """Gradients of the whole batch, computed `micro_batch` rows at a time if the stage says so."""
        size = self.stage.micro_batch
        if size is None:
            return full_batch(accelerator, module, batch, seed)
        compares = any(edge.loss in COMPARES_ROWS for edge in self.stage.edges.values())
        means = self.stage.data == "bitext" and not compares
        return (accumulated if means else cached)(accelerator, module, batch, seed, size)

    def trial(self) -> Trial:
        """A step on a few rows, in which features stand in for frozen towers where they are kept."""
        live = self._batches(FeatureCache(), self.context.recipe.cache.model_copy(update={"features": "off"}))
        self._check_steps(live)

        def sample(count: int) -> tuple[TriangleBatch, list[Kept]]:
            rows = np.random.default_rng(0).choice(len(self.rows), count, replace=False)
            batch = live.batch(rows).to(self.context.model.device)
            if "centroid" in self.stage.vertices:  # any direction takes as long
                batch.centroid_BD = torch.ones(count, self.context.model.width, device=self.context.model.device)
            return batch, list(self._replace_inputs(batch, count))

        share = self.stage.batch_size // self.context.processes
        together = min(share, self.stage.micro_batch or share)
        return Trial(len(self.rows), live.steps, f"{self.stage.batch_size:,}", share, together, sample)

    def _replace_inputs(self, batch: TriangleBatch, count: int) -> list[Kept]:
        """Put features into a batch of `count` rows for the towers whose features are kept; what they take."""
        model, rows, kept = self.context.model, self.rows, list[Kept]()
        section = self.context.recipe.cache

        def keep(name: str, inputs: int, items: int, tower: str, *given: Tensor | None) -> Tensor:
            module: Callable[..., Tensor] = getattr(model, tower)
            module = partial(over_templates, module) if tower == "teacher_text" else module
            with evaluating(getattr(model, tower)):
                seconds, output = timed(lambda: module(*given))
            dtype = "fp16" if section.dtype == "int8" and name != "token states" else section.dtype
            kept.append((name, items, output.shape[-1] * BYTES[dtype], seconds / inputs))
            return output

        frozen = set() if section.features == "off" else self.stage.vertices - self.live
        if "image" in frozen:
            images = len(np.unique(rows.images_N))
            batch.image_BE = keep("images", count, images, "image", batch.pixels_BCHW)
        if "teacher_text" in frozen:
            texts = len(np.unique(rows.teacher_keys_N2[rows.has_teacher_N, 0]))
            batch.teacher_BE = keep("teacher texts", count, texts, "teacher_text", batch.teacher_ids_BT)
        if "student_text" in frozen and "encoder" not in self.live and batch.mask_BT is not None:
            tokens, inputs = int(rows.lengths_N.sum()), int(batch.mask_BT.sum())
            batch.states_BTH = keep("token states", inputs, tokens, "encoder", batch.ids_BT, batch.mask_BT)
        return kept
