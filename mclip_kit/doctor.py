"""Whether this machine, this environment and a recipe can start; a package that cannot be imported is a finding too."""

import glob
import importlib
import io
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mclip_kit.errors import MclipError, RecipeError, first_line
from mclip_kit.files import readable

if TYPE_CHECKING:
    from mclip_kit.config.recipe import Recipe

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
ALSO = ("tokenizers", "huggingface-hub")  # which transformers asks for
STAND_INS = {"ve-fairseq": "fairseq-fixed", "fairseq-fixed": "ve-fairseq"}  # the same `import fairseq`
MATCHED = {"torch": 0, "torchvision": 15, "torchaudio": 0}  # how far a minor number is ahead of its torch's
IMPORTS = {
    "fairseq": "data.fairseq_io",
    "transformers": "models.text_encoder",
    "open_clip": "models.clip",
}  # where it is used
INDEX = ".index.json"  # lists the parts of weights that lie in several files
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container's memory

Needs = tuple[tuple[str, ...], ...]
CLIP: Needs = (("open_clip_config.json",), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
NEEDS: dict[str, Needs] = {
    "local-dir": (CLIP[0], ("*.safetensors", "*.bin", "*.pth")),
    "hf-hub": CLIP,
    "hf": (
        ("config.json",),
        ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
        ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"),
    ),
    "fairseq": (("model.pt", "model.pt.xz"), ("dict.txt",), ("sentencepiece.bpe.model",)),
    "start": (
        *((name,) for name in ("config.json", "projector.safetensors", "clip/open_clip_config.json")),
        *((name,) for name in ("clip/*.safetensors", "encoder/config.json", "encoder/*.safetensors")),
    ),
}
"""A kind of place: the files that it must have, each by the names that it may have (in a folder: globs)."""

WAYS = {
    "teacher": "teacher.model: local-dir:DIR or openai:FILE",
    "encoder": "encoder: hf:DIR or fairseq:DIR",
}
MAKERS = {r"runs/(\w+)/model\b": r"mclip-kit train \1", r"^encoders/e5-small$": "mclip-kit import e5"}
REINSTALL = "install mclip-kit into a new environment, as its README says: its packages are one matched set"


@dataclass(frozen=True)
class Finding:
    """One line of the report, how to mend a problem, and bytes: of the weights that it is about, of those to fetch."""

    status: str
    what: str
    mend: str = ""
    size: int = 0
    download: int = 0

    def __str__(self) -> str:
        return f"{self.status:9}{self.what}" + (f"\n{'':9}{self.mend}" if self.mend else "")


def diagnose(recipe: str | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """What is found, as it is found; nothing is raised. Without a recipe (file or name), the machine and packages."""
    yield from _guarded("packages", packages)
    for package, module in IMPORTS.items():
        yield from _guarded(f"import {package}", imported, package, module)
    yield from _guarded("devices", devices)
    asked = _guarded("recipe", _recipe, recipe, overrides) if recipe else []
    yield from asked
    yield from _guarded("room", room, sum(one.size for one in asked), sum(one.download for one in asked))


def verdict(recipe: str | None, findings: Sequence[Finding]) -> str:
    """The report's last line."""
    count = sum(finding.status == PROBLEM for finding in findings)
    what = (recipe, "can start", "cannot start") if recipe else ("this environment", "is sound", "is not sound")
    return f"{what[0]} {what[2]}: {count} problem{'s' * (count > 1)}" if count else f"{what[0]} {what[1]}"


def _guarded(name: str, check: Callable[..., list[Finding]], *arguments: Any) -> list[Finding]:
    """A check's findings; what breaks in it is one more, and what libraries say meanwhile is dropped."""
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return check(*arguments)
    except MclipError as error:
        return [
            Finding(
                PROBLEM, " ".join(str(error).split()), "change the recipe, or override the key with --set KEY=VALUE"
            )
        ]
    except Exception as error:  # a broken environment raises anything
        return [Finding(PROBLEM, f"{name}: {type(error).__name__}: {first_line(error)}", REINSTALL)]


def packages() -> list[Finding]:
    """Python and the installed packages against what this program asks for."""
    required = [f"Python{metadata('mclip-kit')['Requires-Python']}", *(requires("mclip-kit") or [])]
    with suppress(PackageNotFoundError):
        required += [line for line in requires("transformers") or [] if line.startswith(ALSO)]
    installed = {"Python": platform.python_version()}
    for name in (re.split(r"[^\w.-]", line)[0] for line in required[1:]):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return [*versions(required, installed), *matched(installed)]


def versions(required: Sequence[str], installed: Mapping[str, str]) -> list[Finding]:
    """Installed versions against requirements as a distribution declares them, extras and other platforms left out."""
    from packaging.requirements import Requirement

    findings = []
    asked = [Requirement(line) for line in required]
    by_name = {one.name: one for one in asked}
    for one in (one for one in asked if not one.marker or one.marker.evaluate({"extra": ""})):
        if one.name not in installed and STAND_INS.get(one.name) in installed:
            one = by_name[STAND_INS[one.name]]
        fits = one.name in installed and one.specifier.contains(installed[one.name], prereleases=True)
        row = f"{one.name:18}{installed.get(one.name, 'missing'):12}{one.specifier}"
        findings.append(Finding(OK, row) if fits else Finding(PROBLEM, row, f"pip install '{one.name}{one.specifier}'"))
    return findings


def matched(installed: Mapping[str, str]) -> list[Finding]:
    """A problem for each package that was made for another torch than the installed one."""
    from packaging.version import Version

    torch = {name: Version(installed[name]).minor - ahead for name, ahead in MATCHED.items() if name in installed}
    return [
        Finding(PROBLEM, f"{name} {installed[name]} is for torch 2.{minor}, not {installed['torch']}", REINSTALL)
        for name, minor in torch.items()
        if minor != torch.get("torch", minor)
    ]


def imported(package: str, module: str) -> list[Finding]:
    """Whether a heavy package can be imported, by the module of ours that asks most of it."""
    ours = importlib.import_module(f"mclip_kit.{module}")
    if package == "fairseq":
        ours.fairseq_data()  # which imports it when it is needed
    return [Finding(OK, f"import {package}")]


def devices() -> list[Finding]:
    """GPUs, or why there is none, and CPU threads."""
    import torch

    with warnings.catch_warnings(record=True, action="always") as said:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = "".join(f" ({' '.join(str(warning.message).split())[:200]})" for warning in said[:1])
    bf16 = "bf16" if count and torch.cuda.is_bf16_supported() else "no bf16"
    cards = map(torch.cuda.get_device_properties, range(count))
    gpus = [Finding(OK, f"GPU: {card.name}, {readable(card.total_memory, 1)}, {bf16}") for card in cards]
    cpu = Finding(OK, f"CPU: {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    return [*(gpus or [Finding(NOTE, f"GPU: none: runs on the CPU{why}")]), cpu]


def room(size: int, download: int) -> list[Finding]:
    """Memory and disk for weights of `size` bytes, and disk for a download of so many in the hub's cache."""
    import psutil
    from huggingface_hub.constants import HF_HUB_CACHE

    memory = psutil.virtual_memory()
    limits = [Path(name).read_text(encoding="ascii").strip() for name in LIMITS if Path(name).is_file()]
    total = min([memory.total, *(int(limit) for limit in limits if limit.isdecimal())])
    what = f"memory: {readable(total, 1)}, free {readable(min(total, memory.available), 1)}"
    rows = [(what, total, size, "take smaller towers, or a larger machine")]
    mend = "make room there, or take another disk: run elsewhere, or let HF_HOME name another cache"
    for folder, need in ((Path("runs"), size), (Path(HF_HUB_CACHE), download)):
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(there).free
        rows.append((f"disk: {readable(free, 1)} free for {folder}", free, need, mend))
    return [
        Finding(PROBLEM, f"{what}; the weights take {readable(need, 1)}", mend) if need > there else Finding(OK, what)
        for what, there, need, mend in rows
    ]


def _recipe(name: str, overrides: Sequence[str]) -> list[Finding]:
    from mclip_kit.config.recipe import load

    recipe = load(name, overrides)
    findings = [finding for check in (weights, prepared) for finding in _guarded(check.__name__, check, recipe)]
    if recipe.precision == "fp16" and not importlib.import_module("torch").cuda.is_available():
        findings.append(Finding(PROBLEM, "precision: fp16 needs a GPU", "--set precision=bf16, or fp32"))
    if not any(finding.status == PROBLEM or finding.download for finding in findings):
        findings += _guarded("start", starts, recipe)
    return findings


def starts(recipe: "Recipe") -> list[Finding]:
    """Whether a run of the recipe gets to its first step: its towers are built, and each stage has rows for a batch."""
    from mclip_kit.train.run import Run

    with TemporaryDirectory() as folder:
        rows = [len(task.rows) for task in Run(recipe, Path(folder, "run")).tasks()]
    counts = ", ".join(f"{stage.name} {count:,}" for stage, count in zip(recipe.stages, rows, strict=True))
    return [Finding(OK, f"towers are built; rows to train on: {counts}")]


def weights(recipe: "Recipe") -> list[Finding]:
    """Where each tower's weights are, or how large a download they are."""
    teacher, encoder = recipe.teacher, recipe.encoder
    wanted = [("start", f"start:{recipe.init_from}")] if recipe.init_from else []
    if isinstance(encoder, str):
        wanted.append(("encoder", encoder))
    if teacher and isinstance(teacher.model, str) and teacher.weights not in ("random", "train"):
        kind = "file" if Path(str(teacher.weights)).is_file() else teacher.model
        wanted.append(("teacher", teacher.model if ":" in teacher.model else f"{kind}:{teacher.weights}"))
    found = [finding for key, name in wanted for finding in _guarded(key, _look_up, key, name)]
    return found or [Finding(OK, "weights: all are new")]


def _look_up(key: str, name: str) -> list[Finding]:
    from huggingface_hub import constants

    from mclip_kit.models.hub import hub_answers

    place, needs = _place(name)
    sizes = [_bytes(place, names) for names in needs]
    missing = ", ".join(names[0] for names, size in zip(needs, sizes, strict=True) if size is None)
    if missing:
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else "the hub does not answer"
        hub = "the hub shows none" if isinstance(place, Path) or hub_answers() else offline
        why = f"no {missing} in the cache {constants.HF_HUB_CACHE}, and {hub} ({constants.ENDPOINT})"
        if isinstance(place, Path):
            why = f"no {missing} there" if place.is_dir() else "no such folder"
        made = [match.expand(how) for where, how in MAKERS.items() if (match := re.search(where, str(place)))]
        ways = f"give a local path ({WAYS.get(key, 'start: DIR')}), or point HF_HOME to a cache that holds it"
        return [Finding(PROBLEM, f"{key} {name}: {why}", "; or ".join([*made, ways]))]
    size, download = (sum(column) for column in zip(*filter(None, sizes), strict=True))
    here = "on disk" if isinstance(place, Path) else "in the cache"
    here = f"{readable(download, 1)} of it to be downloaded" if download else here
    return [Finding(NOTE if download else OK, f"{key} {name}: {readable(size, 1)}, {here}", "", size, download)]


def _place(name: str) -> tuple[Path | str, Needs]:
    """Where a recipe's weights should be, a folder or a repository of the hub, and the files that it takes."""
    kind, _, rest = name.partition(":")
    path = Path(rest)
    if kind in ("file", "openai") or (kind == "fairseq" and path.suffix in (".pt", ".xz")):
        return path.parent, ((glob.escape(path.name),), *NEEDS.get(kind, ())[1:])
    if kind not in NEEDS:  # an open_clip model and its tag
        from open_clip.pretrained import get_pretrained_cfg

        repository, _, file = get_pretrained_cfg(kind.replace("/", "-"), rest).get("hf_hub", "").rpartition("/")
        if not repository:
            raise RecipeError(f"teacher: open_clip knows no weights {rest!r} of {kind}, and there is no such file")
        return repository, ((str(Path(file).with_suffix(".safetensors")), file),) if file else CLIP[1:]
    may_be_remote = kind.startswith("hf") and not path.is_dir() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest)
    return rest if may_be_remote else path, NEEDS[kind]


def _bytes(place: Path | str, names: Sequence[str]) -> tuple[int, int] | None:
    """Bytes of the first of these files, and how many are to be fetched; None if neither disk nor hub has one."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub import try_to_load_from_cache as find_cached

    from mclip_kit.models.hub import PATIENCE, hub_answers

    if isinstance(place, Path):
        return next(((_size(path), 0) for name in names for path in sorted(place.glob(name)) if path.is_file()), None)
    for name in names:
        if isinstance(cached := find_cached(place, name), str):
            return _size(Path(cached)), 0
    for name in names:
        try:
            if hub_answers():
                size = get_hf_file_metadata(hf_hub_url(place, name), timeout=PATIENCE).size or 1
                size = _size(Path(hf_hub_download(place, name))) if name.endswith(INDEX) else size
                return size, size
        except errors.HfHubHTTPError:
            continue
        except Exception:  # of the hub's HTTP client, which is another one in each major version
            constants.HF_HUB_OFFLINE = True
    return None


def _size(path: Path) -> int:
    """Bytes of a file, or of the parts that an index lists."""
    if path.name.endswith(INDEX):
        return int(json.loads(path.read_text(encoding="utf-8"))["metadata"]["total_size"])
    return path.stat().st_size


def prepared(recipe: "Recipe") -> list[Finding]:
    """Whether the recipe's data is prepared, with the languages that it names and the vocabulary of a new encoder."""
    from mclip_kit.data.bitext import open_bitext
    from mclip_kit.data.captions import read_captions
    from mclip_kit.data.tokenizer import XlmrTokenizer

    def selected(folder: str) -> None:
        captions = read_captions(folder)
        for stage in recipe.stages:
            if stage.data == "captions":
                captions.select(stage.split, stage.languages)
        if recipe.evaluation:
            captions.select(recipe.evaluation.split, recipe.evaluation.languages)

    vocabulary = [] if recipe.init_from or isinstance(recipe.encoder, str) else [XlmrTokenizer]
    readers: list[tuple[str, str, list[Callable[[str], Any]]]] = []
    if recipe.data.captions:
        readers.append(("captions", recipe.data.captions, [selected]))
    for number, folder in enumerate(recipe.data.bitexts):
        readers.append(("bitext", folder, [open_bitext, *([] if number else vocabulary)]))
    findings = []
    for key, folder, reads in readers:
        try:
            for read in reads:
                read(folder)
            findings.append(Finding(OK, f"data.{key}: {folder}"))
        except MclipError as error:
            mend = f"mclip-kit prepare CORPUS --out {folder.removesuffix('/bitext')}, or --set data.{key}=DIR"
            findings.append(Finding(PROBLEM, f"data.{key}: {error}", mend))
    return findings
