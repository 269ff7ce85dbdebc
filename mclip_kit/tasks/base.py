"""What a kind of stage gives its run, and the registry of kinds.

A stage of a recipe is a task. A new kind takes a config section (a subclass of `config.stages.Stage`), a `Task`, and a
call of `register`; the run, its loop, its dry run and its evaluation know no kind by name.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mclip_kit.config.recipe import Recipe, register_stage
from mclip_kit.config.stages import Stage
from mclip_kit.data.captions import Captions
from mclip_kit.data.unknown import check_unknown, unknown_shares
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.freezing import freeze_all_but, set_training_mode
from mclip_kit.progress import tqdm
from mclip_kit.tasks.stage_batches import StageBatches

Seed = Callable[[int], None]
"""Seeds all random draws (dropout, ...) of a part of the batch, by its number."""


class Batch(Protocol):
    """The rows of a step, or of a part of it."""

    tokens: int
    """Tokens of its texts, without padding; 0 if no text is read."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""


class StageRows(Protocol):
    """The training rows of a stage, as columns."""

    languages: list[str]

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Context:
    """What a task may use of its run.

    Attributes:
        recipe: the experiment.
        model: with all its towers; the stage changes the parameters that it trains.
        trained: names of these parameters.
        cache: features of frozen towers.
        seed: of the order of the rows.
        processes: that share a step.
        report_unreadable: takes the path of a picture that cannot be read.
        captions: the pictures and captions of the recipe, if it has some.
        warn: takes a line about the rows.
    """

    recipe: Recipe
    model: Any
    trained: frozenset[str]
    cache: FeatureCache
    seed: int = 1
    processes: int = 1
    report_unreadable: Callable[[Path], None] = lambda path: None
    captions: Captions | None = None
    warn: Callable[[str], None] = tqdm.write


@dataclass(frozen=True)
class Scores:
    """An evaluation while training.

    Attributes:
        score: the number that decides which weights are best; higher is better.
        values: what is logged.
        shown: names of the values that are also printed.
        labels: these names in words.
    """

    score: float
    values: dict[str, Any]
    shown: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


class StageModule(nn.Module):
    """A model under the losses of a stage: a batch to named loss terms, and `loss`, their weighted sum.

    A loss may have parameters of its own, such as a temperature or a prediction head: all that this module holds
    besides `model`. They are saved in checkpoints and gone when the stage ends.

    Args:
        model: all towers.
        trained: names of the parameters of the model that the stage trains; all others are frozen.
    """

    def __init__(self, model: nn.Module, trained: Collection[str]) -> None:
        super().__init__()
        self.model = model
        freeze_all_but(model, trained)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen towers stay in eval mode: no dropout, no running statistics."""
        super().train(mode)
        set_training_mode(self.model, mode)
        return self

    def own_state(self) -> dict[str, Tensor]:
        """The tensors of the module that are not the model's."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `own_state` gave."""
        self.load_state_dict(state, strict=False)

    def finish(self) -> None:
        """Copy values from this module into the model when the stage ends."""


Kept = tuple[str, int, int, float]
"""A feature that is kept in the cache: its name, number of inputs, bytes of one, seconds to compute one."""


@dataclass(frozen=True)
class Trial:
    """How to measure a stage on few rows, for `--dry-run`.

    Attributes:
        rows, steps: of the stage.
        size: of a step, as text.
        share: rows of a step that one process has, of which `together` are in memory at the same time.
        sample: number of rows -> a batch of them, in which features stand in for the inputs of frozen towers where
            features are kept, and what is kept.
        advice: what to set where the memory does not suffice.
    """

    rows: int
    steps: int
    size: str
    share: int
    together: int
    sample: Callable[[int], tuple[Any, list[Kept]]]
    advice: str = "micro_batch or checkpointing"


class Task(ABC):
    """A stage of a recipe while it runs.

    Rows are read when they are asked for, and batches are made, with the features that they read, when those are.

    Attributes:
        evaluation: the name of the evaluation that scores the model while it trains, see `evaluate.base`; empty: none.
    """

    evaluation: ClassVar[str] = ""

    def __init__(self, stage: Any, context: Context) -> None:
        self.stage, self.context = stage, context

    @classmethod  # noqa: B027 - most kinds add nothing
    def extend_model(cls, model: Any, recipe: Recipe) -> None:
        """Add to a new model what stages of this kind train besides the towers."""

    @cached_property
    @abstractmethod
    def rows(self) -> StageRows:
        """The training rows.

        Raises:
            DataError: the data has none for the stage, or too few for a batch.
        """

    @cached_property
    @abstractmethod
    def batches(self) -> StageBatches:
        """The batches of the training rows."""

    @abstractmethod
    def module(self) -> StageModule:
        """The model under the losses of the stage; it freezes what the stage does not train."""

    @abstractmethod
    def trial(self) -> Trial:
        """How to measure a step of the stage."""

    @property
    def languages(self) -> list[str]:
        """The languages that the student learns; those that the rows have, unless the kind says otherwise."""
        return self.rows.languages

    def check_spelling(self, tokens: Sequence[np.ndarray], languages: Sequence[str], languages_N: np.ndarray) -> None:
        """Refuse, or warn of, texts that the encoder's vocabulary cannot spell.

        Args:
            tokens: ids of N texts, by the encoder's tokenizer.
            languages: codes; `languages_N` numbers them.
        Raises:
            DataError: more than `data.max_unknown` of a language's pieces are `<unk>`.
        """
        shares = unknown_shares(tokens, languages, languages_N, self.context.model.encoder.tokenizer.unknown)
        remedy = f"stage {self.stage.name} needs an encoder whose vocabulary covers it, or other languages"
        check_unknown(shares, self.context.recipe.data.max_unknown, "data.max_unknown", remedy, self.context.warn)

    def check_window(self, rows: int) -> None:
        """Say that a shuffle window is as large as all rows, so that it changes nothing but the random draw."""
        window = self.stage.shuffle_window
        if window and window >= rows:
            self.context.warn(f"stage {self.stage.name}: shuffle_window {window:,} has no effect: it has {rows:,} rows")

    @property
    def needs_start(self) -> bool:
        """Whether `see_start` shall be called."""
        return False

    def see_start(self) -> None:  # noqa: B027 - most kinds need nothing of it
        """Take what the stage needs of the model, which has the weights of the stage's start now, also after resuming.

        It is called before the first step, and again when the stage is resumed.
        """

    def gradients(self, accelerator: Accelerator, module: nn.Module, batch: Any, seed: Seed) -> dict[str, Tensor]:
        """Leave the gradients of a step in the parameters, and return the loss terms."""
        return full_batch(accelerator, module, batch, seed)

    def extract(self) -> None:
        """Compute and keep what the stage reads of frozen towers."""
        _ = self.batches


TASKS: dict[type[Stage], type[Task]] = {}
"""The config section of a kind of stage -> its task."""


def register(section: type[Stage], task: type[Task]) -> None:
    """Make a kind of stage known: recipes may have it from now on.

    Args:
        section: its config; the default of its field `kind` is the name of the kind.
        task: what trains it.
    """
    register_stage(section)
    TASKS[section] = task


def task_of(stage: Stage, context: Context) -> Task:
    """The task of a stage."""
    return TASKS[type(stage)](stage, context)


def full_batch(accelerator: Accelerator, module: nn.Module, batch: Any, seed: Seed) -> dict[str, Tensor]:
    """The gradients of a whole batch at once; see `tasks.grad_cache` for batches that do not fit into memory."""
    seed(0)
    terms: dict[str, Tensor] = module(batch)
    accelerator.backward(terms["loss"])
    return terms


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that some work takes, and its result."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result
