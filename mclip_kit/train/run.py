"""A recipe's run, stage by stage; `layout.py` has the files of its folder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache, partial
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch
from torch import Tensor

from mclip_kit import layout
from mclip_kit.config.recipe import Recipe, dump
from mclip_kit.data.leakage import as_json, without_fingerprints
from mclip_kit.data.readers import reader_count
from mclip_kit.disk import disk_errors
from mclip_kit.errors import CheckpointError, MclipError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.files import write_json, write_text
from mclip_kit.interop.card import record
from mclip_kit.interop.origin import images
from mclip_kit.locks import OTHER
from mclip_kit.models.lora import merge
from mclip_kit.storage import exists, hold, sent_together
from mclip_kit.tasks.base import Context, Scores, Task, task_of
from mclip_kit.train import checkpoint, fsdp
from mclip_kit.train.build import build_accelerator, build_cache, build_model, check_processes, open_data
from mclip_kit.train.callbacks import CALLBACKS, Progress
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.dry_run import dry_run
from mclip_kit.train.leaks import shared_with_tests, training_splits
from mclip_kit.train.logging import Log, report_unreadable
from mclip_kit.train.loop import Loop, stop_requests, train
from mclip_kit.train.optim import learning_rate, optimizer_of, set_activation_checkpointing, trainable
from mclip_kit.train.outcome import card_facts
from mclip_kit.train.parameter_table import table
from mclip_kit.train.processes import on_main
from mclip_kit.train.resume import check_folder, find_start, inputs_of
from mclip_kit.train.score import score

Evaluator = Callable[[Any, FeatureCache, Task], Scores]
"""Scores of a model for a task; the cache has features that are valid. See `train.score`."""


class Interrupted(MclipError):
    """The user or the cluster asked to stop: the step in progress was finished and everything is saved.

    Attributes:
        signal: that asked this process; SIGINT if it asked another process of the run.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class Run:
    """One run of a recipe.

    Args:
        recipe: the experiment.
        folder: where everything is written.
        evaluator: called at step 0, every `evaluation.every_epochs`, and at each stage's end.
        resume: continue from the folder's checkpoint; without one, start.
    Raises:
        CheckpointError: the folder holds a run already, or one of another recipe.

    Attributes:
        was_finished: `go` found a whole run, and changed nothing.
    """

    was_finished = False

    def __init__(self, recipe: Recipe, folder: Path, evaluator: Evaluator | None = None, resume: bool = False) -> None:
        self.recipe, self.folder, self.evaluator = recipe, folder, evaluator
        self.accelerator = build_accelerator(recipe)
        self.is_main = self.accelerator.is_main_process
        self.changes = on_main(lambda: check_folder(folder, recipe, resume))
        check_processes(recipe, self.accelerator.num_processes)
        self.captions = open_data(recipe)
        self.leaks = on_main(lambda: shared_with_tests(recipe))
        self.model: Any = build_model(recipe).to(self.accelerator.device)
        if hasattr(self.model, "image"):  # convolutions run faster so, also on CPUs
            self.model.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = [frozenset(trainable(self.model, stage.train)) for stage in recipe.stages]
        self.cache = build_cache(recipe, folder, self.accelerator)
        self.warn = cache(self.cache.log)  # a line once
        self.inputs = on_main(lambda: inputs_of(recipe, self.model, self.cache))
        if recipe.parallel == "fsdp" and self.accelerator.num_processes > 1:
            fsdp.shard_encoder(self.model.encoder)

    def describe(self) -> str:
        """The towers, their parameters, what each stage trains and how, and known leaks of test sets."""
        head = f"{self.folder} on {self.accelerator.device}, {self.accelerator.mixed_precision} mixed precision"
        return "\n".join([head, *table(self.model, self.recipe.stages, self.trained), *self.warnings()])

    def warnings(self) -> list[str]:
        """Lines about known leaks of test sets, and about folders that cannot be checked for them."""
        unknown = without_fingerprints(training_splits(self.recipe))
        return [f"  leak: {leak.line()}" for leak in self.leaks] + [
            f"  {folder}: has no fingerprints, so it cannot be checked for rows of test sets" for folder in unknown
        ]

    def tasks(self) -> Iterator[Task]:
        """The tasks of all stages as they are before training: what a stage trains is not frozen in the next ones."""
        changed: frozenset[str] = frozenset()
        for index in range(len(self.recipe.stages)):
            changed |= self.trained[index]
            yield self._task(index, changed)

    def _task(self, index: int, trained: frozenset[str]) -> Task:
        self.cache.trained = frozenset(name.split(".")[0] for name in trained)
        seed, report = self.recipe.seed + index, partial(report_unreadable, self.folder)
        shared = (self.accelerator.num_processes, report, self.captions, self.warn)
        context = Context(self.recipe, self.model, trained, self.cache, seed, *shared)
        return task_of(self.recipe.stages[index], context)

    def extract(self) -> None:
        """Compute and keep the outputs of frozen towers for every stage; not of towers that an earlier stage trains."""
        for task in self.tasks():
            task.extract()

    def dry_run(self) -> Iterator[str]:
        """Time and memory of every stage, measured on few rows; nothing is written. See `train.dry_run`."""
        self.cache.writes = False
        for index in range(len(self.recipe.stages)):
            yield from dry_run(self.accelerator, self._task(index, self.trained[index]))

    def go(self) -> Path:
        """Train all stages; write and return the model folder. A run that has its model already is left as it is.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
            BusyError: another process trains in the folder.
        """
        with ExitStack() as stack:
            on_main(lambda: stack.enter_context(hold(self.folder, "run", "trains there", OTHER)))
            return self._train()

    def _train(self) -> Path:
        out = self.folder / layout.MODEL
        state, self.was_finished = self._start(out)
        if self.was_finished:
            return out
        self.load(state.model)
        self._learnt(state.languages)
        on_main(lambda: self._write_head(state))
        later = range(state.stage + 1, len(self.recipe.stages))  # errors in their rows come now, not hours later
        on_main(lambda: [len(self._task(index, self.trained[index]).rows) for index in later])
        for index in range(state.stage, len(self.recipe.stages)):
            self._stage(index, state)
            state = TrainState(index + 1)
            self.accelerator.free_memory()  # it would hold every stage's optimiser until the end
        self.save_model(out)
        if self.is_main:
            self.metrics.close()
        return out

    def _start(self, out: Path) -> tuple[TrainState, bool]:
        """Where the run starts or resumes, and whether it has ended, as the main process's folder says."""

        def is_finished(state: TrainState) -> bool:
            return state.stage == len(self.recipe.stages) and exists(out / self._last_file())

        given = self.recipe.stages, self.accelerator.num_processes, self.inputs, self.changes, is_finished
        content, finished, lines = on_main(lambda: find_start(self.folder, *given))
        for line in lines:
            self.cache.log(line)
        return TrainState(**content), finished

    def _last_file(self) -> str:
        """The file of the model folder that is written last: a folder that has it is complete."""
        if hasattr(self.model, "projector"):
            return layout.MODEL_CONFIG
        return layout.TRANSLATOR_CONFIG if self.model.decoder else f"{layout.ENCODER}/tokenizer_config.json"

    def _write_head(self, state: TrainState) -> None:
        write_text(self.folder / layout.RECIPE, dump(self.recipe))
        write_json(self.folder / layout.LEAKAGE, as_json(self.leaks))
        self.metrics = Log(self.folder, self.recipe.trackers, state.stage, state.step)

    def _stage(self, index: int, state: TrainState) -> None:
        """Train one stage, from a state on."""
        at = self._begin(index, state)
        at.call("before_stage")
        with closing(at), stop_requests() as asked, closing(train(self.accelerator, at.loop, at.step, asked)) as steps:
            for step in steps:
                at.step, at.values, at.rows, at.interrupted = step
                at.done = at.step == at.loop.steps
                at.call("after_step")
                if at.done:
                    break
                if at.interrupted:
                    where = f"stage {at.stage.name}: stopped after step {at.step} of {at.loop.steps}"
                    raise Interrupted(where, asked[0] if asked else SIGINT)
        at.call("restore_weights")
        if at.stage.checkpointing:
            set_activation_checkpointing(self.model, False)
        at.module.finish()
        self._drop_features(at.task)
        at.call("after_stage")

    def _begin(self, index: int, state: TrainState) -> Progress:
        """A stage, ready for its next step."""
        task = self._task(index, self.trained[index])
        self._drop_features(task)
        module = task.module()
        if task.stage.checkpointing:
            set_activation_checkpointing(self.model, True)
        self._learnt(task.languages)
        loop = self.loop(index, task, module)
        at = Progress(self, index, task, module, loop, state.step, best=state.best)
        at.callbacks = [callback(at, state) for callback in CALLBACKS]
        if state.optimizer is not None:
            fsdp.load_optimizer_state(module, loop.optimizer, state.optimizer)
            module.load_own_state(state.module)
            if self.accelerator.scaler is not None and state.scaler:
                self.accelerator.scaler.load_state_dict(state.scaler)
        return at

    def loop(self, index: int, task: Task, module: Any) -> Loop:
        """The optimisation of a stage."""
        stage, batches = task.stage, task.batches
        return Loop(
            name=f"stage {index + 1}/{len(self.recipe.stages)} {stage.name}",
            optimizer=self.accelerator.prepare(optimizer_of(module, stage)),
            module=fsdp.prepare(self.accelerator, module).train(),
            batches=batches,
            readers=reader_count(self.recipe.workers, batches.decodes),
            rate=learning_rate(stage.lr, stage.schedule, stage.warmup_steps, batches.steps, stage.warmup_init_lr),
            steps=batches.steps,
            steps_per_epoch=batches.steps_per_epoch,
            clip_norm=stage.clip_norm,
            seed=task.context.seed,
            gradients=task.gradients,
        )

    def score(self, task: Task) -> Scores | None:
        """Scores of the weights as they are, computed once for all processes; None if nothing evaluates the stage."""
        if self.evaluator is None or not task.evaluation:
            return None
        self._drop_features(task)
        scores = score(self.evaluator, self.model, self.cache, task)
        self._drop_features(task)
        return scores

    def write(self, index: int, step: int, values: dict[str, Any]) -> None:
        """Log values of a step."""
        if self.is_main:
            self.metrics.write(index, self.recipe.stages[index].name, step, values)

    def save(self, state: TrainState, path: Path) -> None:
        """Write a checkpoint with every tensor that a stage up to the state's has trained, and the buffers."""
        trained = frozenset().union(*self.trained[: state.stage + 1])
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        tensors = fsdp.full_state(self.model)
        state.languages, state.inputs = self.model.trained_languages, self.inputs
        state.processes = self.accelerator.num_processes
        state.model = {name: t for name, t in tensors.items() if name in trained or name not in parameters}
        on_main(lambda: checkpoint.save(state, path, self.recipe.checkpoints_kept))

    def read(self, name: str) -> TrainState:
        """A checkpoint of the run folder, by its name in `layout`; that of the main process."""
        return TrainState(**on_main(lambda: vars(checkpoint.read(self.folder / name))))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Give the model the tensors of a checkpoint."""
        own = self.model.state_dict()
        wrong = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
        if wrong:
            place = self.folder / layout.LAST
            raise CheckpointError(f"{place}: does not fit the recipe's model: {wrong[0]}; remove it to start again")
        fsdp.load_full_state(self.model, tensors)

    def save_model(self, folder: Path) -> None:
        """Write the full model, with adapters merged, as others load it."""
        tensors = fsdp.full_state(self.model)

        def write() -> None:
            model = self.model
            if fsdp.is_sharded(model):
                model = build_model(self.recipe)
                model.load_state_dict(tensors)
                model.trained_languages = self.model.trained_languages
            merge(model.encoder)
            with sent_together(folder), disk_errors(folder):
                model.save(folder)
                found = images(model.clip[0], folder) if hasattr(model, "clip") else {}
                record(folder, card_facts(self.recipe, self.leaks, found))

        on_main(write)

    def _learnt(self, languages: list[str]) -> None:
        self.model.trained_languages = sorted({*self.model.trained_languages, *languages})

    def _drop_features(self, task: Task) -> None:
        """Drop cached features of towers that the stage changes."""
        for tower in {name.split(".")[0] for name in task.context.trained}:
            self.cache.drop(tower)
