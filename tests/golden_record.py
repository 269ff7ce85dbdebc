"""The golden record: every shipped recipe at tiny sizes, in float32 on one CPU thread, and what came out of it.

    python -m tests.golden_record write FILE      run all, write losses of the logged steps and hashes of the weights
    python -m tests.golden_record compare FILE    run all again; exit code 1 unless every bit is the same

On one machine and one set of packages the record is exact, so a change of the code that is not meant to change what a
run computes is checked by writing the record before it and comparing after it. On other machines the losses agree
within tolerances; `tests/test_golden_record.py` compares them with `tests/golden_record.json`.
"""

import hashlib
import json
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mclip_kit.cli import cli
from tests import tiny

RECORD = Path(__file__).with_suffix(".json")
PACE = ("pairs_per_s", "tokens_per_s", "wait", "memory_gb")  # of metrics.jsonl: what depends on the machine

TEACHER = f"teacher={json.dumps({'weights': 'random', 'model': tiny.TEACHER})}"
ENCODER = f"encoder={json.dumps({**tiny.ENCODER, 'weights': 'random'})}"
LANGUAGES = "[en, de, fr]"
TWO_STAGES = {
    "evaluation.every_epochs": 5,
    **{f"stages.{n}.epochs": 5 for n in (0, 1)},
    **{f"stages.{n}.lr": 1e-3 for n in (0, 1)},
    **{f"stages.{n}.warmup_steps": 4 for n in (0, 1)},
    "stages.0.batch_size": 36,
    "stages.1.batch_size": 20,
}
TRIKD = {
    "evaluation.every_epochs": 3,
    "stages.0.batch_size": 24,
    "stages.0.epochs": 5,
    "stages.0.warmup_steps": 4,
    "stages.0.lr": 3e-3,
}
TRANSLATION = {
    "decoder": "{layers: 1, dropout: 0.1}",
    "evaluation": "{split: valid, every_steps: 10, sentences: 2, beams: 2}",
    **{f"stages.{n}.steps": 12 for n in (0, 1)},
    **{f"stages.{n}.batch_tokens": 384 for n in (0, 1)},
    **{f"stages.{n}.warmup_steps": 4 for n in (0, 1)},
    **{f"stages.{n}.max_tokens": 20 for n in (0, 1)},
}
FINETUNE = {
    "init_from": "{runs}/trikd_projectors/model",
    "stages.0.split": "train",
    "stages.0.batch_size": 24,
    "stages.0.epochs": 4,
    "stages.0.warmup_steps": 4,
}
FROZEN = {
    "teacher.model": "local-dir:{runs}/quickstart/model/clip",
    "encoder": "hf:{runs}/quickstart/model/encoder",
}

Sets = dict[str, Any]
RUNS: dict[str, tuple[str, Sets]] = {
    "quickstart": (
        "quickstart",
        {
            "teacher": json.dumps({"weights": "train", "model": tiny.TEACHER}),
            "encoder": json.dumps(tiny.ENCODER),
            "evaluation.languages": LANGUAGES,
            "stages.0.batch_size": 24,
            "stages.0.epochs": 4,
            "stages.0.augment.shift": 1,
            "stages.1.batch_size": 48,
            "stages.2.batch_size": 24,
            "stages.2.epochs": 2,
            "stages.2.warmup_steps": 4,
            "stages.2.languages": LANGUAGES,
        },
    ),
    "quickstart_trikd": (
        "quickstart_trikd",
        {
            **FROZEN,
            "projector.hidden": 32,
            "evaluation.every_epochs": 5,
            **{f"stages.{n}.languages": LANGUAGES for n in (0, 1)},
            **{f"stages.{n}.batch_size": 36 for n in (0, 1)},
            **{f"stages.{n}.epochs": 5 for n in (0, 1)},
            **{f"stages.{n}.warmup_steps": 4 for n in (0, 1)},
        },
    ),
    "quickstart_unpaired": (
        "quickstart_unpaired",
        {
            **FROZEN,
            "data.unpaired": "{de: {data}/bitext/train.en-de.de.txt}",
            "projector.hidden": 32,
            "evaluation.every_epochs": 5,
            **{f"stages.{n}.languages": "[en, fr]" for n in (0, 1)},
            **{f"stages.{n}.mine.margin": 0.9 for n in (0, 1)},
            **{f"stages.{n}.batch_size": 36 for n in (0, 1)},
            **{f"stages.{n}.epochs": 5 for n in (0, 1)},
            **{f"stages.{n}.warmup_steps": 4 for n in (0, 1)},
        },
    ),
    "m2m": (
        "m2m",
        {
            **FROZEN,
            "projector.hidden": 32,
            "evaluation.every_epochs": 5,
            "stages.0.batch_size": 36,
            "stages.0.epochs": 10,
            "stages.0.warmup_steps": 4,
        },
    ),
    "calibrate": (
        "calibrate",
        {
            "init_from": "{runs}/quickstart/model",
            "evaluation.languages": LANGUAGES,
            "stages.0.languages": LANGUAGES,
            "stages.0.batch_size": 24,
            "stages.0.warmup_steps": 4,
        },
    ),
    "altclip_full": ("altclip_full", TWO_STAGES),
    "altclip_m9": ("altclip_m9", {**TWO_STAGES, **{f"stages.{n}.languages": "[en, fr]" for n in (0, 1)}}),
    "trikd_projectors": ("trikd_projectors", TRIKD),
    "trikd_projectors, no cache": ("trikd_projectors", {**TRIKD, "cache": "off"}),
    "mte": ("mte", TRANSLATION),
    "mclip_plus": ("mclip_plus", {**TRANSLATION, "stages.2.batch_size": 24, "stages.2.epochs": 5}),
    "multi30k_finetune, wise_ft": ("multi30k_finetune", {**FINETUNE, "stages.0.languages": LANGUAGES}),
    "coco_finetune": ("coco_finetune", FINETUNE),
    "lora": (
        "altclip_full",
        {**TWO_STAGES, "lora": "{rank: 2, dropout: 0.1}", "stages.1.train": "[lora, projector]"},
    ),
    "micro_batch": ("altclip_full", {**TWO_STAGES, "stages.0.micro_batch": 10, "stages.1.micro_batch": 10}),
    "ema, layer_decay": (
        "altclip_full",
        {**TWO_STAGES, "stages.0.ema": 0.9, "stages.1.ema": 0.8, "stages.0.layer_decay": 0.7},
    ),
}
"""Name of a run: its recipe, and the keys that make it small."""
NEW_TOWERS = ("altclip", "trikd_projectors", "mclip_plus", "mte")  # recipes whose pretrained towers are replaced
ONE_FOLDER = {"mte": "bitext", "multi30k_finetune": "captions", "coco_finetune": "captions", "calibrate": "captions"}


def overrides(recipe: str, sets: Sets, data: Path, runs: Path) -> list[str]:
    """The `--set` options of a run."""
    towers = [ENCODER] * recipe.startswith(NEW_TOWERS) + [TEACHER] * recipe.startswith(NEW_TOWERS[:3])
    places = {"captions": data, "bitext": data / "bitext"}
    kinds = [ONE_FOLDER[recipe]] if recipe in ONE_FOLDER else list(places)
    folders = [f"data.{kind}={places[kind]}" for kind in kinds]
    written = {key: str(value).replace("{runs}", str(runs)).replace("{data}", str(data)) for key, value in sets.items()}
    given = [f"{key}={value}" for key, value in written.items()]
    return ["precision=fp32", "checkpoint_every=7", *towers, *folders, *given]


def record(folder: Path) -> dict[str, Any]:
    """Run everything in a folder; run -> losses and other logged numbers, and hashes and norms of the weights."""
    torch.set_num_threads(1)
    data, runs = tiny.corpus(folder / "data"), folder / "runs"
    found = {}
    for name, (recipe, sets) in RUNS.items():
        out = runs / name.replace(", ", "-")
        options = [word for override in overrides(recipe, sets, data, runs) for word in ("--set", override)]
        with (
            open(folder / "output.txt", "a", encoding="utf-8") as output,
            redirect_stderr(output),
            redirect_stdout(output),
        ):
            cli.main(["train", f"recipes/{recipe}.yaml", "--out", str(out), *options], standalone_mode=False)
        found[name] = {"log": _log(out), "weights": _weights(out)}
    return found


def _log(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in PACE} for row in rows]


def _weights(run: Path) -> dict[str, Any]:
    """Weight file of a model folder -> hash of its tensors, and their norm."""
    found = {}
    for path in sorted(run.glob("model*/**/*.safetensors")):
        digest, squares = hashlib.blake2b(digest_size=16), 0.0
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            squares += float(tensor.double().square().sum())
        found[str(path.relative_to(run))] = {"hash": digest.hexdigest(), "norm": squares**0.5}
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two records, a line each."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, {"log": [], "weights": {}}), now.get(name, {"log": [], "weights": {}})
        if len(old["log"]) != len(new["log"]):
            found.append(f"{name}: {len(old['log'])} logged rows before, {len(new['log'])} now")
        for row, (a, b) in enumerate(zip(old["log"], new["log"], strict=False)):
            found += [
                f"{name}, row {row}, {key}: {a.get(key)} {b.get(key)}" for key in a | b if a.get(key) != b.get(key)
            ]
        files = dict.fromkeys([*old["weights"], *new["weights"]])
        found += [
            f"{name}, {file}: other weights" for file in files if old["weights"].get(file) != new["weights"].get(file)
        ]
    return found


def _written(found: dict[str, Any]) -> str:
    """JSON with a line a logged row."""
    runs = []
    for name, run in found.items():
        rows = ",\n  ".join(map(json.dumps, run["log"]))
        runs.append(f' {json.dumps(name)}: {{"log": [\n  {rows}],\n  "weights": {json.dumps(run["weights"])}}}')
    return "{\n" + ",\n".join(runs) + "\n}\n"


def main(command: str, file: str) -> int:
    """Write or compare; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        now = record(Path(folder))
    if command == "write":
        Path(file).write_text(_written(now), encoding="utf-8")
        return 0
    found = differences(json.loads(Path(file).read_text(encoding="utf-8")), now)
    print("\n".join(found[:40]) or f"{len(now)} runs: every loss and every weight is the same, bit for bit")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
