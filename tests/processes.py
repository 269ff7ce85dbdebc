"""The command line in one process, or in several by torchrun and gloo."""

import os
import subprocess
import sys
from pathlib import Path


def train(recipe: Path, out: Path, processes: int = 1, *options: str) -> str:
    """Run `mclip-kit train`; its standard output. torchrun takes a port that is free."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch = [sys.executable, *(torchrun if processes > 1 else []), "-m", "mclip_kit.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launch, "train", str(recipe), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
