"""The device that is used unless a user names one."""

import torch


def auto_device() -> torch.device:
    """The GPU if CUDA is available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """A device as results and reports name it: `cpu`, or `cuda (NVIDIA H100)`."""
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
