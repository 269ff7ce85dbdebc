"""What processes that are forked for tests need not import again (tests/processes.py)."""

import accelerate.tracking
import pytest
import sacrebleu
import torch.distributed.fsdp
import torch.utils.tensorboard

import mclip_kit.cli
import mclip_kit.data.corpora.lines
import mclip_kit.data.fairseq_io
import mclip_kit.data.prepare.prepare
import mclip_kit.evaluate.validation
import mclip_kit.train.run
from tests import tiny

mclip_kit.data.fairseq_io.fairseq_data()

__all__ = ["accelerate", "mclip_kit", "pytest", "sacrebleu", "tiny", "torch"]
