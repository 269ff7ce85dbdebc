"""What readers send: any tensors and values, and one piece of shared memory for all of them."""

import pickle
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mclip_kit.data import parcels
from mclip_kit.data.parcels import Parcel


@dataclass
class Batch:
    """Tensors of all kinds beside other values."""

    tensors: list[Tensor]
    names: dict[str, Any]


def batch() -> Batch:
    whole = torch.arange(24.0).view(2, 3, 4)
    return Batch(
        [
            torch.rand(2, 3, 5, 5).contiguous(memory_format=torch.channels_last),
            whole[:, 1],  # a view
            torch.ones(3, 1).expand(3, 4),
            torch.tensor([True, False, True]),
            torch.arange(5, dtype=torch.int32).flip(0),
            torch.tensor(2.5, dtype=torch.float64),
            torch.empty(0, 4),
            torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16),
        ],
        {"text": "a", "array": np.arange(3), "none": None, "again": whole},
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_a_batch_arrives_as_it_was() -> None:
    torch.manual_seed(0)
    sent = batch()
    found = pickle.loads(pickle.dumps(Parcel(sent))).open()
    for before, after in zip(sent.tensors, found.tensors, strict=True):
        assert (before.dtype, before.shape, bits(before)) == (after.dtype, after.shape, bits(after))
    assert found.tensors[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.names["again"], sent.names["again"])
    assert found.names["array"].tolist() == [0, 1, 2]
    found.tensors[0].zero_()  # each has its own place
    assert [bits(tensor) for tensor in found.tensors[1:]] == [bits(tensor) for tensor in sent.tensors[1:]]


def test_all_tensors_of_a_result_are_handed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = []
    real = reduction.DupFd
    monkeypatch.setattr(reduction, "DupFd", lambda number: handed.append(number) or real(number))
    parcel = Parcel(batch())
    assert len(handed) == 1
    assert len(parcel.open().tensors) == 8
    assert not Parcel({"only": "values"}).open().keys() - {"only"}
    assert len(handed) == 1


def test_a_result_arrives_where_the_shared_memory_has_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(size: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch>: Success (0)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    parcels._note_no_room.cache_clear()
    sent = batch()
    found = pickle.loads(pickle.dumps(Parcel(sent))).open()
    assert list(map(bits, found.tensors)) == list(map(bits, sent.tensors))
    assert "memory has no room" in "".join(capsys.readouterr())


def test_what_cannot_be_pickled_is_an_error_of_the_sender() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        Parcel([torch.ones(2), lambda: None])


def test_a_gpu_fetches_from_a_block_that_is_pinned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda block: pinned.append(block.numel()) or block.clone())
    found = Parcel(batch()).pin_memory().open()
    assert len(pinned) == 1
    assert list(map(bits, found.tensors[1:])) == list(map(bits, batch().tensors[1:]))
