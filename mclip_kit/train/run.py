"""A recipe's run, stage by stage.

RUN/recipe.yaml             the resolved recipe
RUN/metrics.jsonl           loss terms and evaluations, one row each; the same in RUN/tensorboard
RUN/checkpoints/last.pt     where it stands;  best.pt: the stage's best weights;  start.pt: its first, for wise_ft
RUN/model/                  what it was for;  model-wise_ft/: between the last stage's start and its end, if asked for
RUN/nonfinite.jsonl         rows of steps that were skipped, as loss or gradient was no finite number, if any
RUN/leakage.json            test sets that it trained on, if any are prepared beside its data
RUN/unreadable.txt          pictures that could not be read, if any
RUN/../features/            outputs of frozen towers, which other runs beside it read too
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from mclip_kit.config.recipe import Recipe, dump
from mclip_kit.config.stages import TranslationStage, TriangleStage
from mclip_kit.data.datasets import TranslationRows, TriangleRows
from mclip_kit.data.leakage import LEAKAGE, as_json, unknown
from mclip_kit.errors import CheckpointError, DataError, MclipError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.files import write_json, write_text
from mclip_kit.models.lora import merge
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.translator import Translator
from mclip_kit.tasks.translation import Translation
from mclip_kit.tasks.triangle import Triangle, TriangleBatch
from mclip_kit.tasks.triangle_batches import Feed
from mclip_kit.train import checkpoint, fsdp
from mclip_kit.train.alarm import CollapseMonitor
from mclip_kit.train.average import Average, between
from mclip_kit.train.build import (
    Rows,
    build_accelerator,
    build_examples,
    build_model,
    build_objective,
    build_plan,
    check_data,
    check_processes,
    needs,
    shared_with_tests,
    step_gradients,
    training_splits,
)
from mclip_kit.train.checkpoint import State
from mclip_kit.train.dry_run import Trial, estimate, pairs_trial, triangle_trial
from mclip_kit.train.logging import Log, note_skipped, report_unreadable
from mclip_kit.train.loop import Loop, stop_requests, train
from mclip_kit.train.optim import learning_rate, optimizer_of, set_activation_checkpointing, trainable
from mclip_kit.train.parameter_table import table
from mclip_kit.train.translate import build_directions, build_feed, pairs_plan
from mclip_kit.train.verdict import degraded, kept, out_of_patience, update_best

CACHE_VARIABLE = "MCLIP_KIT_CACHE"
LOG_EVERY = 10  # steps between rows of metrics.jsonl
# of an evaluation, on the terminal
SHOWN = ("score", "mean_t2i_r1", "mean_t2i_r10", "teacher_t2i_r1", "bleu", "chrf", "retrieval_error")

Evaluator = Callable[[Any, FeatureCache, Any], Any]
"""(model, features that are valid, stage) -> values for the log; the number `score` decides which is best."""


def _task(stage: TriangleStage | TranslationStage) -> SimpleNamespace:
    """What an evaluator reads of a stage's task."""
    if isinstance(stage, TranslationStage):
        return SimpleNamespace(stage=stage, evaluation="translation", metric="bleu")
    student = any("student_text" in edge for edge in stage.edges)
    return SimpleNamespace(stage=stage, evaluation="retrieval", metric="mean_t2i_r1" if student else "teacher_t2i_r1")


class Interrupted(MclipError):
    """Ctrl-C: the step in flight was finished and everything is saved."""


class Run:
    """One run of a recipe.

    Args:
        recipe: the experiment.
        folder: where everything is written.
        evaluator: called at step 0, every `evaluation.every_epochs`, and at each stage's end.
        resume: go on where the folder's checkpoint stands; without one, start.
    Raises:
        CheckpointError: the folder holds a run already, or one of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path, evaluator: Evaluator | None = None, resume: bool = False) -> None:
        self.recipe, self.folder, self.evaluator = recipe, folder, evaluator
        self.last, self.best, self.start = (folder / "checkpoints" / f"{name}.pt" for name in ("last", "best", "start"))
        self.accelerator = build_accelerator(recipe)
        if self.accelerator.is_main_process:
            checkpoint.check_folder(folder, recipe, resume)
        check_processes(recipe, self.accelerator.num_processes)
        self.captions = check_data(recipe)
        self.leaks = shared_with_tests(recipe) if self.accelerator.is_main_process else []
        self.model: Any = build_model(recipe).to(self.accelerator.device)
        if recipe.triangles:  # convolutions run faster so, on CPUs too
            self.model.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = [trainable(self.model, stage.train) for stage in recipe.stages]
        self.sharded = recipe.parallel == "fsdp" and self.accelerator.num_processes > 1
        if self.sharded:
            fsdp.shard(self.model.encoder)
        self.store = self._store()

    def _store(self) -> FeatureCache:
        """Features that are kept: beside the run, unless the recipe or the environment names a place."""
        cache, accelerator = self.recipe.cache, self.accelerator
        root = Path(cache.folder or os.environ.get(CACHE_VARIABLE) or self.folder.parent / "features")
        return FeatureCache(
            None if cache.features == "off" else root,
            cache.dtype,
            {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32),
            accelerator.process_index,
            accelerator.num_processes,
            cache.features in ("tokens", "auto"),
            cache.workers,
            tqdm.write if accelerator.is_main_process else lambda line: None,
        )

    def describe(self) -> str:
        """The towers, their parameters, what each stage trains and how, and what is known of leaks."""
        lines = [f"{self.folder} on {self.accelerator.device}, {self.accelerator.mixed_precision} mixed precision"]
        lines += table(self.model, self.recipe.stages, self.trained)
        lines += [f"  leak: {leak.line()}" for leak in self.leaks]
        for folder in unknown(training_splits(self.recipe)):
            lines.append(f"  {folder}: not prepared by this version, so it is not known whether test sets are in it")
        return "\n".join(lines)

    def go(self) -> Path:
        """Train all stages; write and return the model folder."""
        state = checkpoint.read(self.last) if self.last.is_file() else State(0, 0, {})
        self._load(state.model)
        finished = state.stage == len(self.recipe.stages)
        self.model.trained_languages = sorted({*self.model.trained_languages, *state.languages})
        if self.accelerator.is_main_process:
            write_text(self.folder / "recipe.yaml", dump(self.recipe))
            write_json(self.folder / LEAKAGE, as_json(self.leaks))
            self.log = Log(self.folder, self.recipe.trackers, state.stage, state.step)
        for index in range(state.stage, len(self.recipe.stages)):
            self._stage(index, state)
            state = State(index + 1, 0, {})
            self.accelerator.free_memory()  # it would hold every stage's optimiser until the end
        out = self.folder / "model"
        tensors = fsdp.whole(self.model.state_dict())
        if self.accelerator.is_main_process:
            self.log.close()
            if not (finished and (out / "config.json").is_file()):
                self._whole(tensors).save(out)
        return out

    def _whole(self, tensors: dict[str, Tensor]) -> MultilingualClip | Translator:
        """The model as others load it: in one piece, and without adapters."""
        model = self.model
        if self.sharded:
            model = build_model(self.recipe)
            model.load_state_dict(tensors)
            model.trained_languages = self.model.trained_languages
        merge(model.encoder)
        return model

    def _stage(self, index: int, state: State) -> None:
        """Train one stage from a state on; it ends with its best weights or its last, as the recipe says."""
        stage, best = self.recipe.stages[index], state.best
        self._forget(index)
        self.store.trained = frozenset(name.split(".")[0] for name in self.trained[index])
        objective = build_objective(stage, self.model, self.trained[index])
        if stage.checkpointing:
            set_activation_checkpointing(self.model, True)
        loop = self.loop(index, objective)
        known = fsdp.dealt(state.average, self.model.state_dict())
        self.average = Average(self.model, self.trained[index], stage.ema, known)
        if state.optimizer is not None:
            loop.optimizer.load_state_dict(fsdp.shard_optimizer_state(state.optimizer, loop.optimizer))
            objective.scales.load_state_dict(state.scales)
        if state.step == 0:
            best = self._evaluate(index, 0, best)
            if stage.wise_ft:
                self._save(State(index, 0, {}), self.start)
        alarm = CollapseMonitor(loop.steps)
        with stop_requests() as asked:
            for step, values in train(self.accelerator, loop, state.step):
                end = step == loop.steps
                self.average.update()
                for line in alarm.check_step(step, values):
                    self.store.log(f"stage {stage.name}, step {step}: {line}")
                if step % LOG_EVERY == 0 or end:
                    self._write(index, step, values)
                if end or self._evaluates(step, loop):
                    best = self._evaluate(index, step, best)
                    why = out_of_patience(best, self.recipe.evaluation)
                    if why and not end:
                        self.store.log(f"stage {stage.name}, step {step}: {why}")
                    end = end or bool(why)
                if not end and (asked or step % self.recipe.checkpoint_every == 0):
                    scales, moments = objective.scales.state_dict(), loop.optimizer.state_dict()
                    state = State(index, step, {}, dict(scales), moments, self.average.values, best)
                    self._save(state, self.last)
                if asked and not end:
                    raise Interrupted(f"stage {stage.name}: stopped after step {step} of {loop.steps}; it is saved")
                if end:
                    break
        if best and self.recipe.evaluation and self.recipe.evaluation.keep == "best":
            self._load(checkpoint.read(self.best).model)
        elif stage.ema is not None:
            self._load(self.average.values)
        if stage.checkpointing:
            set_activation_checkpointing(self.model, False)
        self._keep_temperature(objective)
        self._forget(index)
        if stage.wise_ft:
            self._interpolate(index, step, stage.wise_ft, best)
        self._save(State(index + 1, 0, {}), self.last)

    def loop(self, index: int, objective: Triangle | Translation) -> Loop:
        """A stage's optimisation, ready for its first step."""
        stage, seed = self.recipe.stages[index], self.recipe.seed + index
        rows = self._rows(index, seed)
        self.model.trained_languages = sorted({*self.model.trained_languages, *rows.languages})
        optimizer = self.accelerator.prepare(optimizer_of(objective, stage))
        return Loop(
            name=f"stage {index + 1}/{len(self.recipe.stages)} {stage.name}",
            objective=fsdp.prepare(self.accelerator, objective).train(),
            optimizer=optimizer,
            batches=rows.plan.epoch,
            fetch=rows.fetch,
            rate=learning_rate(stage.lr, stage.schedule, stage.warmup_steps, rows.steps),
            steps=rows.steps,
            per_epoch=rows.per_epoch,
            clip_norm=stage.clip_norm,
            seed=seed,
            gradients=step_gradients(stage),
            max_nonfinite=stage.max_nonfinite,
            skipped=partial(note_skipped, self.folder, stage.name),
        )

    def _rows(self, index: int, seed: int) -> Rows:
        """What a stage trains on."""
        stage, weights = self.recipe.stages[index], self.recipe.data.shares
        if isinstance(stage, TranslationStage):
            processes = self.accelerator.num_processes
            pairs = build_directions(stage, self.recipe, self.model.encoder)
            plan = pairs_plan(stage, pairs, weights, processes, seed)
            pair_feed = build_feed(stage, self.recipe, self.model, self.trained[index], self.store, pairs)
            spoken = pairs.languages if isinstance(self.model, Translator) else []  # the triangle's student speaks none
            return Rows(plan, pair_feed.batch, stage.steps, plan.per_epoch, spoken)
        examples = build_examples(stage, self.recipe, self.model, self.captions)
        spoken = examples.languages if any("student_text" in edge for edge in stage.edges) else []
        feed = self._feed(stage, self.trained[index], examples)
        plan = build_plan(stage, feed.examples, weights, seed)
        per_epoch = plan.per_epoch
        if not per_epoch:
            raise DataError(f"stage {stage.name}: without unreadable pictures no batch of {stage.batch_size} is left")
        return Rows(plan, lambda own: TriangleBatch(**feed.batch(own)), per_epoch * stage.epochs, per_epoch, spoken)

    def _feed(self, stage: TriangleStage, live: set[str], examples: TriangleRows) -> Feed:
        wanted = needs(stage, live, self.recipe.cache)
        return Feed(
            FrozenTowers(self.model, self.store),
            examples,
            wanted,
            self.captions,
            partial(report_unreadable, self.folder),
        )

    def extract(self) -> None:
        """Compute and keep what the frozen towers give for every stage, as far as it is known before training."""
        changed: set[str] = set()
        for index, stage in enumerate(self.recipe.stages):
            changed |= self.trained[index]
            self.store.trained = frozenset(name.split(".")[0] for name in changed)
            if isinstance(stage, TranslationStage):
                pairs = build_directions(stage, self.recipe, self.model.encoder)
                build_feed(stage, self.recipe, self.model, changed, self.store, pairs)
            else:
                self._feed(stage, changed, build_examples(stage, self.recipe, self.model, self.captions))

    def rows(self) -> list[int]:
        """How many rows each stage has."""
        return [len(self._examples(stage)) for stage in self.recipe.stages]

    def _examples(self, stage: TriangleStage | TranslationStage) -> TriangleRows | TranslationRows:
        if isinstance(stage, TranslationStage):
            return build_directions(stage, self.recipe, self.model.encoder)
        return build_examples(stage, self.recipe, self.model, self.captions)

    def estimate(self) -> Iterator[str]:
        """What every stage will take, measured in small; nothing is written. See `train.estimate`."""
        for index, stage in enumerate(self.recipe.stages):
            objective = build_objective(stage, self.model, self.trained[index])
            if stage.checkpointing:
                set_activation_checkpointing(self.model, True)
            optimizer = self.accelerator.prepare(optimizer_of(objective, stage))
            wrapped = fsdp.prepare(self.accelerator, objective)
            step = partial(self._step, step_gradients(stage), wrapped.train(), optimizer)
            yield from estimate(self._trial(stage, self.trained[index]), step, self.model)
            self.accelerator.free_memory()

    def _trial(self, stage: TriangleStage | TranslationStage, trained: set[str]) -> Trial:
        processes = self.accelerator.num_processes
        if isinstance(stage, TranslationStage):
            return pairs_trial(stage, build_directions(stage, self.recipe, self.model.encoder), self.model, processes)
        examples = build_examples(stage, self.recipe, self.model, self.captions)
        wanted = needs(stage, trained, self.recipe.cache)
        return triangle_trial(stage, examples, self.model, wanted, self.captions, processes, self.recipe.cache.dtype)

    def _step(self, gradients: Callable[..., Any], objective: Any, optimizer: Any, batch: Any) -> None:
        optimizer.zero_grad()
        gradients(self.accelerator, objective, batch, lambda part: None)
        optimizer.step()

    def _evaluates(self, step: int, loop: Loop) -> bool:
        evaluation = self.recipe.evaluation
        if evaluation is None:
            return False
        return step % (evaluation.every_steps or evaluation.every_epochs * loop.per_epoch) == 0

    def _evaluate(self, index: int, step: int, best: dict[str, float] | None) -> dict[str, float] | None:
        """Evaluate, once over all processes; the best weights so far are kept in best.pt."""
        if self.evaluator is not None:
            with self.average.applied():
                values = self._score(index)
                self._write(index, step, values)
                shown = {name: values[name] for name in SHOWN if name in values}
                self.store.log(f"  step {step}: " + "  ".join(f"{name} {value:.1f}" for name, value in shown.items()))
                best = update_best(best, step, values["score"])
                if best["step"] == step:
                    self._save(State(index, step, {}, best=best), self.best)
            why = degraded(best, self.recipe.evaluation)
            if why:
                raise DataError(f"stage {self.recipe.stages[index].name}, step {step}: {why} {self.best}")
        return best

    def _score(self, index: int) -> dict[str, float]:
        """What the evaluator finds of the weights as they are, once over all processes."""
        assert self.evaluator
        self._forget(index)
        together = self.sharded or self.accelerator.is_main_process  # a dealt-out encoder needs everyone
        values: dict[str, Any] = {}
        if together:
            scored = self.evaluator(self.model, self.store, _task(self.recipe.stages[index]))
            values = scored if isinstance(scored, dict) else scored.values
        self._forget(index)
        known: dict[str, float] = broadcast_object_list([values])[0]
        return known

    def _interpolate(self, index: int, step: int, share: float, best: dict[str, float] | None) -> None:
        """Weights between the stage's start and its end: scored, and written beside those of its end."""
        start = checkpoint.read(self.start).model
        own = self.model.state_dict()
        end = {name: tensor.to("cpu", copy=True) for name, tensor in fsdp.whole({n: own[n] for n in start}).items()}
        self._load(between(start, end, share))
        scored = self._score(index) if self.evaluator else {}
        tensors, out = fsdp.whole(self.model.state_dict()), self.folder / "model-wise_ft"
        if self.accelerator.is_main_process:
            self._whole(tensors).save(out)
        self._load(end)
        line = f"  wise_ft {share:g}: in {out}"
        if best and self.recipe.evaluation:
            known = {"start_score": best["start"], "tuned_score": kept(best, self.recipe.evaluation)}
            self._write(index, step, {"wise_ft": share, **known, **{f"wise_ft_{k}": v for k, v in scored.items()}})
            line += f"; score {scored['score']:.1f}, tuned {known['tuned_score']:.1f}, at the start {best['start']:.1f}"
        self.store.log(line)

    def _forget(self, index: int) -> None:
        for tower in {name.split(".")[0] for name in self.trained[index]}:
            self.store.forget(tower)

    def _keep_temperature(self, objective: Triangle | Translation) -> None:
        """A teacher that was trained keeps its learned temperature."""
        if "image-teacher_text" in objective.scales:
            self.model.teacher_scale.copy_(objective.scales["image-teacher_text"].detach())

    def _write(self, index: int, step: int, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.log.write(index, self.recipe.stages[index].name, step, values)

    def _save(self, state: State, path: Path) -> None:
        """Write a checkpoint with every tensor that a stage up to the state's has trained, and the buffers."""
        trained = set().union(*self.trained[: state.stage + 1])
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        tensors = self.model.state_dict()
        state.languages = self.model.trained_languages
        state.model = {name: t for name, t in tensors.items() if name in trained or name not in parameters}
        state = State(**fsdp.whole(vars(state)))
        if self.accelerator.is_main_process:
            checkpoint.save(state, path)

    def _load(self, tensors: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        wrong = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
        if wrong:
            raise CheckpointError(f"{self.last}: does not fit the recipe's model: {wrong[0]}; remove it to start anew")
        self.model.load_state_dict(fsdp.dealt(tensors, own), strict=False)
