"""Weights between the start of a fine-tuning and its end; tests/train/test_finetune.py has whole runs."""

import torch

from mclip_kit.train.callbacks.wise_ft import interpolate


def test_interpolation_leaves_what_did_not_change_and_takes_counts_of_the_tuned() -> None:
    start = {"weight": torch.tensor([0.1, 1.0]), "same": torch.tensor([0.1, 0.7]), "count": torch.tensor(3)}
    end = {"weight": torch.tensor([0.2, 3.0]), "same": torch.tensor([0.1, 0.7]), "count": torch.tensor(8)}
    found = interpolate(start, end, 0.3)
    torch.testing.assert_close(found["weight"], torch.tensor([0.13, 1.6]))
    assert torch.equal(found["same"], start["same"])
    assert int(found["count"]) == 8
