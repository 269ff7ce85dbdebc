"""Hashes of everything that decides a tower's output; `data.content_keys` has those of its inputs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn


def hash_facts(facts: dict[str, Any]) -> str:
    """A hash of facts, such as all that decide a tower's output: 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def hash_towers(model: nn.Module, towers: Iterable[str], known: dict[str, str]) -> None:
    """Add to `known` the hash of the weights of each tower of a model that it lacks; each is hashed in a thread."""
    missing = [tower for tower in dict.fromkeys(towers) if tower not in known]
    with ThreadPoolExecutor() as pool:
        known |= zip(missing, pool.map(lambda tower: hash_weights(getattr(model, tower)), missing), strict=True)


def hash_weights(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers: 32 hexadecimal digits."""
    return hash_state(module.state_dict())


def hash_state(state: Mapping[str, Tensor]) -> str:
    """The hash of the weights of a module with this state."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
