"""Checks of the machine and of the installed packages."""

import importlib
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from mclip_kit.doctor.findings import NOTE, OK, PROBLEM, Finding
from mclip_kit.files import readable

ALTERNATIVES = {"ve-fairseq": "fairseq-fixed", "fairseq-fixed": "ve-fairseq"}  # both are `import fairseq`
IMPORTS = {
    "fairseq": "data.fairseq_io",
    "transformers": "models.text_encoder",
    "open_clip": "models.clip",
}  # a heavy package: the module of ours that uses most of it
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def check_packages() -> list[Finding]:
    """Python and every package that mclip-kit requires; and of these packages, each requirement that is not met."""
    own = [f"Python{metadata('mclip-kit')['Requires-Python']}", *(requires("mclip-kit") or [])]
    findings = check_versions(own, installed_version)
    for name in [finding.what.split()[0] for finding in findings[1:] if finding.status == OK]:
        findings += [
            Finding(PROBLEM, f"{finding.what} (required by {name})", finding.fix)
            for finding in check_versions(requires(name) or [], installed_version)
            if finding.status == PROBLEM
        ]
    return findings


def installed_version(name: str) -> str | None:
    """The version of Python or of an installed package."""
    if name == "Python":
        return platform.python_version()
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def check_versions(required: Sequence[str], installed: Callable[[str], str | None]) -> list[Finding]:
    """Installed versions against the requirements of a distribution.

    Args:
        required: requirements as in its metadata; extras and other platforms are left out.
        installed: name -> version, or None.
    """
    from packaging.requirements import Requirement

    findings, by_name = [], {one.name: one for one in map(Requirement, required)}
    for one in map(Requirement, required):
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        other = ALTERNATIVES.get(one.name, "")
        if other in by_name and not installed(one.name) and installed(other):
            one = by_name[other]
        found = installed(one.name)
        row = f"{one.name:18}{found or 'missing':12}{one.specifier}"
        if found and one.specifier.contains(found, prereleases=True):
            findings.append(Finding(OK, row))
        else:
            findings.append(Finding(PROBLEM, row, f"pip install '{one.name}{one.specifier}'"))
    return findings


def check_import(package: str, module: str) -> list[Finding]:
    """Whether a heavy package can be imported, through the module of ours that uses most of it."""
    ours = importlib.import_module(f"mclip_kit.{module}")
    if package == "fairseq":
        ours.fairseq_data()  # the module imports fairseq here
    return [Finding(OK, f"import {package}")]


def check_devices() -> list[Finding]:
    """GPUs, or why there is none; CPU threads."""
    import torch

    with warnings.catch_warnings(record=True, action="always") as caught:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = "".join(f" ({' '.join(str(warning.message).split())[:200]})" for warning in caught[:1])
    bf16 = "bf16" if count and torch.cuda.is_bf16_supported() else "no bf16"
    cards = map(torch.cuda.get_device_properties, range(count))
    gpus = [Finding(OK, f"GPU: {card.name}, {readable(card.total_memory, 1)}, {bf16}") for card in cards]
    cpu = Finding(OK, f"CPU: {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    return [*(gpus or [Finding(NOTE, f"GPU: none: runs on the CPU{why}")]), cpu]


def check_room(size: int, download: int) -> list[Finding]:
    """Memory and disk for weights, and disk for the hub's cache.

    Args:
        size: bytes of all weights.
        download: bytes that must be downloaded into the hub's cache.
    """
    import psutil
    from huggingface_hub.constants import HF_HUB_CACHE

    memory = psutil.virtual_memory()
    limits = [Path(name).read_text(encoding="ascii").strip() for name in MEMORY_LIMITS if Path(name).is_file()]
    total = min([memory.total, *(int(limit) for limit in limits if limit.isdecimal())])
    what = f"memory: {readable(total, 1)}, free {readable(min(total, memory.available), 1)}"
    rows = [(what, total, size, "use smaller towers, or a machine with more memory")]
    fix = "free some space, or use another disk: run in another folder, or set HF_HOME to another cache"
    for folder, need in ((Path("runs"), size), (Path(HF_HUB_CACHE), download)):
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(existing).free
        rows.append((f"disk: {readable(free, 1)} free for {folder}", free, need, fix))
    return [
        Finding(PROBLEM, f"{what}; the weights take {readable(need, 1)}", fix) if need > room else Finding(OK, what)
        for what, room, need, fix in rows
    ]
