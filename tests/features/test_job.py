"""Worker processes that read inputs."""

import os
import signal

import numpy as np
import pytest
import torch

from mclip_kit.errors import DataError
from mclip_kit.features.job import ExtractionJob, load_batches


def test_a_worker_that_is_killed_is_said() -> None:
    def load(part: list[int]) -> tuple[torch.Tensor, list[int]]:
        if 3 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(part), []

    job = ExtractionJob(load=load, run=lambda inputs: inputs, workers=1)
    batches = load_batches([np.array([0, 1]), np.array([2, 3])], job)
    with pytest.raises(DataError, match=r"a reader process was killed.*start again with fewer than 1"):
        list(batches)
