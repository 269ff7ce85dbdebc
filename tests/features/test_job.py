"""Worker processes that read inputs."""

import os
import signal

import numpy as np
import pytest
import torch

from mclip_kit.errors import DataError
from mclip_kit.features.job import MANY, ExtractionJob, load_batches


def test_a_worker_that_is_killed_is_said() -> None:
    def load(part: list[int]) -> tuple[torch.Tensor, list[int]]:
        if 3 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(part), []

    job = ExtractionJob(load=load, run=lambda inputs: inputs, workers=1)
    batches = load_batches([np.array([0, 1]), np.array([2, 3])], job)
    with pytest.raises(DataError, match=r"a reader process was killed.*start again with fewer than 1"):
        list(batches)


def test_readers_are_started_for_many_batches() -> None:
    def load(part: list[int]) -> tuple[int, list[int]]:
        return os.getpid(), part

    for count, elsewhere in ((MANY - 1, False), (MANY, True)):
        batches = [np.array([number, number]) for number in range(count)]
        found = list(load_batches(batches, ExtractionJob(load=load, run=lambda inputs: inputs, workers=None)))
        assert [part for _, part in found] == [[number, number] for number in range(count)]
        assert {process != os.getpid() for process, _ in found} == {elsewhere}
