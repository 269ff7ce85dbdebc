"""Two gloo processes with half a batch each train as one with the whole, on slow disks and without a common one too."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mclip_kit.config.recipe import load
from mclip_kit.errors import DataError, PeerError
from mclip_kit.files import write_whole
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks.base import Scores
from mclip_kit.train import callbacks, checkpoint, loop
from mclip_kit.train.build import build_accelerator
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.logging import read_log
from mclip_kit.train.processes import on_main
from mclip_kit.train.run import Interrupted, Run
from tests import processes, tiny
from tests.train.runs import Killed, killed_at, only_stage

ROWS = 32


def stages() -> list[dict[str, Any]]:
    """MSE and contrastive losses, of whole batches and in parts; more than twenty steps each."""
    one = {"epochs": 4, "batch_size": ROWS, "lr": 2e-3, "train": ["student"], "clip_norm": 1.0}
    mse = one | {"data": "bitext", "edges": {"teacher_text-student_text": {"loss": "mse"}}}
    contrast = {"image-student_text": {"loss": "contrastive", "learned": True}}
    teacher = {"teacher_text-student_text": {"loss": "contrastive", "weight": 0.1}}
    captions = one | {"data": "captions"}
    return [
        mse | {"name": "mse"},
        mse | {"name": "mse_in_parts", "micro_batch": 8},
        captions | {"name": "contrast", "edges": contrast},
        captions | {"name": "contrast_in_parts", "edges": contrast | teacher, "micro_batch": 8},
    ]


def test_two_processes_train_as_one(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = "random"
    tree["encoder"]["dropout"] = 0.0  # each process draws its own
    del tree["evaluation"]
    recipe = tiny.write_recipe(tree | {"stages": stages(), "cache": {"dtype": "fp32"}}, tmp_path / "tiny.yaml")
    for name, count in (("one", 1), ("two", 2)):
        processes.train(recipe, tmp_path / name / "run", count)
    one, two = ([row for row in read_log(tmp_path / name / "run") if "loss" in row] for name in ("one", "two"))
    assert {row["stage"] for row in one} == {stage["name"] for stage in stages()}
    for stage in {row["stage"] for row in one}:
        pairs = [(a, b) for a, b in zip(one, two, strict=True) if a["stage"] == stage and a["step"] <= 20]
        assert len(pairs) >= 2
        for a, b in pairs:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), (stage, a["step"])


def test_translation_trains_in_two_processes(squares: Path, tmp_path: Path) -> None:
    stage = {"kind": "translate", "name": "mte", "train": ["encoder", "decoder"], "lr": 1e-3}
    tree = {name: value for name, value in tiny.recipe(squares).items() if name in ("about", "encoder", "data")}
    tree |= {"stages": [stage | {"steps": 4, "batch_tokens": 256}], "decoder": {"layers": 1}}
    processes.train(tiny.write_recipe(tree, tmp_path / "tiny.yaml"), tmp_path / "run", 2)
    assert [row["step"] for row in read_log(tmp_path / "run") if "loss" in row][-1] == 4


def test_torchrun_starts_the_command(squares: Path, tmp_path: Path) -> None:
    """The other tests fork their ranks from a warm process (tests/processes.py)."""
    tree = tiny.recipe(squares)
    tree |= {"stages": tree["stages"][2:], "evaluation": None, "cache": "off"}
    tree["teacher"]["weights"] = "random"
    recipe = tiny.write_recipe(tree, tmp_path / "tiny.yaml")
    done = processes.torchrun(2, "train", str(recipe), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done; score it with") == 1
    assert load_model(tmp_path / "run" / "model").trained_languages == ["de", "en", "fr"]


SLOW = 0.3  # seconds that a slow disk takes for a checkpoint


@contextmanager
def written_slowly(path: Path) -> Iterator[Path]:
    """`write_whole` on a slow disk."""
    with write_whole(path) as temporary:
        yield temporary
        time.sleep(SLOW)


def rising(*_: Any) -> Scores:
    """A score that is higher at each call."""
    rising.calls = getattr(rising, "calls", 0) + 1  # type: ignore[attr-defined]
    return Scores(float(rising.calls), {})  # type: ignore[attr-defined]


def train_on_a_slow_disk(recipe: Path, folder: Path) -> None:
    """`train_with_own_disk`, where each checkpoint takes `SLOW`."""
    checkpoint.write_whole = written_slowly  # type: ignore[assignment]
    train_with_own_disk(recipe, folder)


def train_with_own_disk(recipe: Path, folder: Path, stop: int = 0, interrupt: int = 0, number: int = 0) -> None:
    """Train in this rank, and keep the weights that it ends with in folder/RANK.pt.

    Args:
        folder: `RANK` in it is replaced by the number of the rank.
        stop: end with an error after this step.
        interrupt: the last rank alone gets a signal, twice, after this step.
        number: the signal.
    """
    rank = os.environ["RANK"]
    folder = Path(str(folder).replace("RANK", rank))

    def fail() -> None:
        raise Killed

    def ask() -> None:
        if rank == "1":
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # torchrun passes on what a terminal or a cluster has sent already

    loop.SAME_REQUEST = math.inf
    for step, what in ((stop, fail), (interrupt, ask)):
        if step:
            callbacks.CALLBACKS.insert(0, killed_at(0, step, what))
    run = Run(load(recipe), folder, rising, resume=True)
    try:
        run.go()
    except Killed:
        return
    except Interrupted as error:
        (folder.parent / f"{rank}.txt").write_text(str(error))
        return
    torch.save(run.model.state_dict(), folder.parent / f"{rank}.pt")


@pytest.fixture
def best(squares: Path, tmp_path: Path) -> Path:
    """A recipe whose last step is its best one, with WiSE-FT."""
    only = only_stage(squares, 2)
    only["stages"][0] |= {"wise_ft_alpha": 0.5}
    tree = tiny.recipe(squares) | only | {"checkpoint_every": 3, "cache": {"dtype": "fp32"}}
    return tiny.write_recipe(tree, tmp_path / "tiny.yaml")


def same_weights(one: Path, other: Path) -> bool:
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a | b)


def test_processes_end_with_the_same_weights_while_the_disk_is_slow(best: Path, tmp_path: Path) -> None:
    done = processes.run(train_on_a_slow_disk, best, tmp_path / "run", ranks=2)
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "0.pt", tmp_path / "1.pt")


def test_processes_without_a_common_disk_resume_from_that_of_the_main_process(best: Path, tmp_path: Path) -> None:
    whole = processes.run(train_with_own_disk, best, tmp_path / "whole" / "run", ranks=2)
    assert whole.returncode == 0, whole.stderr
    apart = tmp_path / "RANK" / "run"
    stopped = processes.run(train_with_own_disk, best, apart, 5, ranks=2)
    assert stopped.returncode == 0, stopped.stderr
    assert checkpoint.read(tmp_path / "0" / "run" / "checkpoints" / "last.pt").step == 3
    assert not (tmp_path / "1" / "run").exists()
    done = processes.run(train_with_own_disk, best, apart, ranks=2)
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "0" / "0.pt", tmp_path / "1" / "1.pt")
    assert same_weights(tmp_path / "0" / "0.pt", tmp_path / "whole" / "0.pt")
    assert not (tmp_path / "1" / "run").exists()


def train_and_note_rows(recipe: Path, folder: Path, stop: int = 0) -> None:
    """Train in this rank, and write the rows of its batches to folder/rows-RANK-OF.txt, a line a step.

    Args:
        stop: end with an error after this step.
    """
    rank, processes = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))

    class Notes(Callback):
        def before_stage(self) -> None:
            self.rows, batches = list[list[int]](), self.at.loop.batches
            read = batches.read
            batches.read = lambda rows: (self.rows.append(rows.tolist()), read(rows))[1]

        def after_step(self) -> None:
            with (folder.parent / f"rows-{rank}-{processes}.txt").open("a") as handle:
                print(self.at.step, *self.rows[-1], file=handle)
            if self.at.step == stop:
                raise Killed

    callbacks.CALLBACKS.insert(0, Notes)
    with suppress(Killed):
        Run(load(recipe), folder, rising, resume=True).go()


def rows_of(folder: Path, processes: int) -> dict[int, list[int]]:
    """Step -> its rows, those of all ranks, in the order of the batch."""
    ranks = []
    for rank in range(processes):
        lines = (folder / f"rows-{rank}-{processes}.txt").read_text().splitlines()
        steps = (list(map(int, line.split())) for line in lines)
        ranks.append({step: rows for step, *rows in steps})
    return {
        step: [row for share in zip(*(own[step] for own in ranks), strict=True) for row in share] for step in ranks[0]
    }


@pytest.fixture(scope="module")
def noted(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and beside it the rows of its run in one process."""
    tree = tiny.recipe(squares) | only_stage(squares, 2) | {"checkpoint_every": 3, "cache": {"dtype": "fp32"}}
    tree["encoder"]["dropout"] = 0.0  # each process draws its own
    recipe = tiny.write_recipe(tree, tmp_path_factory.mktemp("noted") / "tiny.yaml")
    done = processes.run(train_and_note_rows, recipe, recipe.parent / "run")
    assert done.returncode == 0, done.stderr
    return recipe


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [(2, 1, "1 process instead of 2"), (1, 2, "2 processes instead of 1, each with 1/2 of a batch")],
)
def test_another_number_of_processes_goes_on_with_the_same_rows(
    before: int, after: int, line: str, noted: Path, tmp_path: Path
) -> None:
    for stop, ranks in ((5, before), (0, after)):
        done = processes.run(train_and_note_rows, noted, tmp_path / "run", stop, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert f"{line}: the same rows in the same order" in done.stdout.splitlines()
    assert "the run goes on from step 3 of stage 1" in done.stdout
    expected, first, rest = rows_of(noted.parent, 1), rows_of(tmp_path, before), rows_of(tmp_path, after)
    assert list(first) == [1, 2, 3, 4, 5]
    assert list(rest) == list(expected)[3:]
    assert first | rest == expected
    one, other = (
        [row["loss"] for row in read_log(folder / "run") if "loss" in row] for folder in (noted.parent, tmp_path)
    )
    assert len(one) > 1
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_stops_all_after_the_same_step(number: int, best: Path, tmp_path: Path) -> None:
    done = processes.run(train_with_own_disk, best, tmp_path / "run", 0, 4, int(number), ranks=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()
    assert "stopped after step 5" in (tmp_path / "0.txt").read_text()
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "last.pt").step == 5


def too_large_a_batch(recipe: Path, folder: Path) -> None:
    """In each rank: a run whose second stage has too few rows."""
    run = Run(load(recipe), folder)
    with pytest.raises(DataError if run.is_main else PeerError, match="rows are too few for a batch of 5000"):
        run.go()


def test_the_main_process_alone_checks_the_rows_of_later_stages(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    del tree["evaluation"]
    tree["stages"][2]["batch_size"] = 5000
    recipe = tiny.write_recipe(tree, tmp_path / "tiny.yaml")
    done = processes.run(too_large_a_batch, recipe, tmp_path / "run", ranks=2)
    assert done.returncode == 0, done.stderr


def values_and_errors() -> None:
    """In each rank: what `on_main` gives."""
    state = build_accelerator(load("quickstart"))
    tensors = {"a": [torch.arange(6.0).reshape(2, 3), torch.tensor(7)], "b": (torch.ones(2, dtype=torch.bfloat16), "c")}
    tensors["none"] = (torch.empty(0), torch.tensor([True, False]))
    found = on_main(lambda: tensors if state.is_main_process else {})
    for one, other in zip(tree_leaves(found), tree_leaves(tensors), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other

    def fail() -> None:
        raise DataError("the disk is full")

    with pytest.raises(DataError if state.is_main_process else PeerError, match="the disk is full"):
        on_main(fail)


def test_what_the_main_process_reads_reaches_the_others_and_so_do_its_errors() -> None:
    done = processes.run(values_and_errors, ranks=2)
    assert done.returncode == 0, done.stderr
    alone = {"tensor": torch.ones(2)}
    assert on_main(lambda: alone) is alone
