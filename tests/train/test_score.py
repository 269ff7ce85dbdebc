"""Two processes score as one: each embeds its share, with the same weights and buffers, and the main one ranks."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import load
from mclip_kit.errors import DataError, PeerError
from mclip_kit.evaluate import retrieval
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.tasks.base import Scores
from mclip_kit.train.build import build_accelerator
from mclip_kit.train.logging import read_log
from mclip_kit.train.processes import on_all
from mclip_kit.train.run import Run
from mclip_kit.train.score import score
from tests import processes, tiny
from tests.train.runs import only_stage

CAPTIONS = 36  # of the split: 12 pictures in three languages


def train_and_count(recipe: Path, folder: Path) -> None:
    """Train in this rank; folder/RANK.txt has how many captions it encodes at a time, and how often it ranks."""
    counts, ranked = [], []
    student, both_ranks = Embedder.student, retrieval.both_ranks

    def count(self: Embedder, texts: list[str]) -> Any:
        counts.append(len(texts))
        return student(self, texts)

    def rank(*given: Any) -> Any:
        ranked.append(1)
        return both_ranks(*given)

    Embedder.student, retrieval.both_ranks = count, rank  # type: ignore[method-assign,assignment]
    checked = load(recipe)
    Run(checked, folder / "run", evaluator(checked)).go()
    (folder / f"{os.environ.get('RANK', '0')}.txt").write_text(f"{sum(counts)} {len(ranked)}")


def test_two_processes_score_as_one(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares) | only_stage(squares, 2) | {"cache": {"dtype": "fp32"}}
    tree["encoder"]["dropout"] = 0.0  # each process draws its own
    tree["stages"][0]["epochs"] = 1
    recipe = tiny.write_recipe(tree, tmp_path / "tiny.yaml")
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        done = processes.run(train_and_count, recipe, tmp_path / str(ranks), ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = ([row for row in read_log(tmp_path / name / "run") if "score" in row] for name in ("1", "2"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert len(one) > 1
    queries = [name for name in one[0] if name.endswith("_t2i_r1")]
    assert len(queries) == 5  # three languages, their mean, and the teacher
    for name in queries:  # rounding may swap neighbours
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=100 / 12 + 1e-6)
    alone, ranked = map(int, (tmp_path / "1" / "0.txt").read_text().split())
    shares = [tuple(map(int, (tmp_path / "2" / f"{rank}.txt").read_text().split())) for rank in range(2)]
    assert alone == CAPTIONS * len(one)
    assert [ranks for _, ranks in shares] == [ranked, 0]
    assert sum(count for count, _ in shares) <= alone  # the same text is encoded once
    assert abs(shares[0][0] - shares[1][0]) <= len(one)


class Shares:
    """An evaluator whose values are what the processes gave."""

    def share(self, model: torch.nn.Module, cache: FeatureCache, task: Any) -> Any:
        if task == "fails" and cache.rank == 1:
            raise DataError("a damaged picture")
        return cache.rank, [buffer.tolist() for buffer in model.buffers()]

    def __call__(self, model: Any, cache: FeatureCache, task: Any, shares: Any) -> Scores:
        assert cache.rank == 0
        return Scores(1.0, {"shares": shares})


def scored_together() -> None:
    """In each rank: buffers that differ before, and an error of one rank."""
    build_accelerator(load("quickstart"))
    rank = torch.distributed.get_rank()
    cache = FeatureCache(rank=rank, world_size=2)
    model = torch.nn.BatchNorm1d(3)
    assert model.running_mean is not None
    model.running_mean.fill_(7.0 + rank)
    expected = [[7.0] * 3, [1.0] * 3, 0]
    found = score(Shares(), model, cache, "works")  # type: ignore[arg-type]
    assert found.values == {"shares": [(0, expected), (1, expected)]}
    with pytest.raises(DataError if rank == 1 else PeerError, match="a damaged picture"):
        score(Shares(), model, cache, "fails")  # type: ignore[arg-type]
    assert on_all(lambda: rank) == [0, 1]  # they are in step after an error


def test_all_processes_have_the_buffers_of_the_main_one_and_learn_of_errors() -> None:
    done = processes.run(scored_together, ranks=2)
    assert done.returncode == 0, done.stderr
    assert on_all(lambda: 3) == [3]
