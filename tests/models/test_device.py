"""Where models run: the device of a block is that of whatever is loaded and ranked in it."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.ranks import both_ranks
from mclip_kit.models.device import as_precision, auto_device, autocast, on_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_device_of_a_block_ends_with_it_and_is_that_of_all_threads() -> None:
    before, seen = auto_device(), []
    with on_device("meta") as chosen:
        thread = threading.Thread(target=lambda: seen.append(auto_device()))
        thread.start()
        thread.join()
        with on_device("auto"):
            seen.append(auto_device())
        with on_device("cpu"):
            seen.append(auto_device())
    assert seen == [chosen, chosen, torch.device("cpu")]
    assert chosen.type == "meta"
    assert auto_device() == before


def test_a_device_that_cannot_be_used_is_a_users_mistake_and_changes_nothing() -> None:
    before = auto_device()
    with (
        pytest.raises(RecipeError, match=r"device: 'abacus' cannot be used here; use auto or cpu"),
        on_device("abacus"),
    ):
        pass
    assert auto_device() == before


@pytest.mark.parametrize(
    ("wanted", "device", "dtype"),
    [("fp32", CPU, "float32"), ("auto", CPU, "float32"), ("bf16", CPU, "bfloat16"), ("fp16", GPU, "float16")],
)
def test_a_precision_is_the_type_of_autocast(wanted: str, device: torch.device, dtype: str) -> None:
    precision = as_precision(wanted, device)
    assert precision == getattr(torch, dtype)
    if device == CPU:
        with autocast(device, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(RecipeError, match="precision: fp16 needs a GPU; use bf16 or fp32"):
        as_precision("fp16", CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_ranks_are_computed_on_the_device_of_the_block(tmp_path: Path) -> None:
    a_ND = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    a_ND /= np.linalg.norm(a_ND, axis=1, keepdims=True)
    with on_device("cpu"):
        torch.cuda.reset_peak_memory_stats()
        here = both_ranks(a_ND, a_ND[::-1].copy(), np.arange(40), np.arange(40))
        assert torch.cuda.max_memory_allocated() == 0
    there = both_ranks(a_ND, a_ND[::-1].copy(), np.arange(40), np.arange(40))
    assert all((x == y).all() for x, y in zip(here, there, strict=True))
