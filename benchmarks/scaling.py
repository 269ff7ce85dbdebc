"""What a run takes on 1 to 512 devices: hours, bytes, and what limits it; the tables of docs/scaling.md.

    python benchmarks/scaling.py [--tflops 100] [--network 25] [--disk 2] [--price 0] [--check] [--write] [--smoke]

The work of an item is counted (torch's FlopCounterMode on the real architectures, no weights), its bytes are those of
the files, and seconds of the CPU are measured by the scripts that `MEASURED` names. The speed of a device, of the
network and of the disk are options: put yours in. `--check` runs both towers of TriKD and a training step on this
machine and predicts their times from the time of a matrix product; the last line has the smallest of predicted by
measured. `--write` writes the tables into docs/scaling.md; `--smoke` ends with an error if the page has others.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from side_by_side import last_line, seconds
from torch.utils.flop_counter import FlopCounterMode

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
GOAL = 0.5
DEVICES = (1, 8, 64, 512)
NODE = 8  # devices of a machine
TOKENS = 19  # of a caption: the mean of Multi30K's in four languages (benchmarks/embed.py)
CORES = 16  # of a machine
TRAIN = 3  # forward passes that a forward and a backward pass are worth
MEASURED = {
    "prepare": (35e-6, "benchmarks/prepare_workers.py --only pairs, one process"),
    "write": (5.5e-6, "the same, the main process of two"),
    "first start": (8.2e-6, "benchmarks/train_scale.py --kinds captions, rows made"),
    "later start": (0.27e-6, "benchmarks/scale.py"),
}
"""Seconds of one core a row, and the script that measures them."""
ROW = {
    "prepared table (texts as long as Multi30K's)": 95,
    "rows: ids, keys, lengths, groups, teacher texts": 69 + 4 * TOKENS + 60,
    "places of three tables": 24,
}
"""Bytes of a row on the disk, mapped by all processes of a machine."""
KEPT = 16 + 8 + 4 + 1 + 34  # bytes of a row of features beside its numbers: key, offset, checksum, mark, index
PRIVATE = 3  # bytes of a row in each process, at most (benchmarks/train_scale.py)


@dataclass(frozen=True)
class Run:
    """A stage of training.

    Attributes:
        rows, epochs, batch: of the recipe.
        live: floating-point operations of a row in a step.
        trained: weights whose gradients are exchanged.
        filled: operations that fill the features, of all inputs.
        kept: bytes of all features.
        read: bytes of features that a row reads.
    """

    name: str
    rows: float
    epochs: int
    batch: int
    live: float
    trained: float
    filled: float
    kept: float
    read: float


@cache
def towers() -> dict[str, tuple[float, float]]:
    """Name -> (operations of an item: a picture, or a token of a text; weights)."""
    import open_clip
    from transformers import AutoConfig, AutoModel

    found = {}
    for name in ("ViT-B-32", "ViT-L-14"):
        with torch.device("meta"):
            clip = open_clip.create_model(name, pretrained=None, device="meta")
        pixels_BCHW, ids_BT = (
            torch.empty(1, 3, 224, 224, device="meta"),
            torch.zeros(1, 77, dtype=torch.long, device="meta"),
        )
        found[name] = count(partial(clip.visual, pixels_BCHW)), weights(clip.visual)
        found[f"{name} text"] = count(partial(clip.encode_text, ids_BT)) / 77, 0.0
    for name, width, layers in (("XLM-R base", 768, 12), ("XLM-R large", 1024, 24), ("X-projector", 768, 2)):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
        config = AutoConfig.for_model(
            "xlm-roberta", num_hidden_layers=layers, vocab_size=250_002, max_position_embeddings=514, **sizes
        )
        with torch.device("meta"):
            encoder = AutoModel.from_config(config, attn_implementation="eager")
        states_BTH = torch.empty(1, TOKENS, width, device="meta")
        operations = count(partial(encoder.encoder, states_BTH)) / TOKENS
        found[name] = operations, weights(encoder.encoder if name == "X-projector" else encoder)
    return found


def count(work: Callable[[], Any]) -> float:
    """The floating-point operations of a function; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def weights(module: torch.nn.Module) -> float:
    """The number of its weights."""
    return float(sum(parameter.numel() for parameter in module.parameters()))


def vector(width: int, size: int = 2) -> float:
    """Bytes of a row of features with one vector."""
    return width * size + KEPT


def runs() -> Iterator[Run]:
    """The stages of the papers, and what would come after them."""
    found = towers()
    large, students = found["XLM-R large"], TRAIN * TOKENS * found["XLM-R large"][0]
    for name, pairs, epochs in (
        ("AltCLIP teacher learning, 36 million pairs", 36e6, 10),
        ("the same, 2 billion pairs, one epoch", 2e9, 1),
    ):
        teacher = TOKENS * found["ViT-L-14 text"][0]
        yield Run(name, 2 * pairs, epochs, 1024, students, large[1], pairs * teacher, pairs * vector(768), vector(768))
    for name, pictures in (
        ("AltCLIP contrastive, 2 million pictures", 2e6),
        ("AltCLIP-M9 contrastive, 100 million pictures", 1e8),
    ):
        picture = found["ViT-L-14"][0]
        yield Run(name, pictures, 1, 1024, students, large[1], pictures * picture, pictures * vector(768), vector(768))
    states = TOKENS * (768 + 4) + KEPT
    base = found["XLM-R base"][0]
    for name, pictures, captions in (
        ("TriKD, 3 million pictures, captions in five languages", 3e6, 15e6),
        ("the same, 100 million pictures, captions in five languages", 1e8, 5e8),
    ):
        english = captions / 5
        yield Run(
            name,
            captions,
            15,
            2048,
            TRAIN * TOKENS * found["X-projector"][0],
            found["X-projector"][1],
            pictures * found["ViT-B-32"][0] + TOKENS * (english * found["ViT-B-32 text"][0] + captions * base),
            pictures * vector(512) + english * vector(512) + captions * states,
            states + 2 * vector(512),
        )


@dataclass(frozen=True)
class Machines:
    """Speeds: operations a second of a device, bytes a second of each device's network and of each machine's disk."""

    device: float
    network: float
    disk: float
    price: float

    def hours(self, run: Run, devices: int) -> dict[str, float]:
        """Hours of each part of a run, and the share of its training that waits for gradients."""
        nodes = -(-devices // NODE)
        steps = run.rows * run.epochs / run.batch
        compute = run.rows * run.epochs * run.live / (devices * self.device)
        sync = steps * 2 * (devices - 1) / devices * 4 * run.trained / self.network
        read = run.rows * run.epochs * run.read / (nodes * self.disk)
        train = max(compute + sync, read)
        limit = "disk" if read > compute + sync else "network" if sync > compute else "devices"
        fill = max(run.filled / (devices * self.device), run.kept / (nodes * self.disk))
        start = run.rows * MEASURED["first start"][0]
        prepare = run.rows * max(MEASURED["prepare"][0] / CORES, MEASURED["write"][0])
        parts = {"prepare": prepare, "features": fill, "start": start, "train": train}
        found: dict[str, Any] = {name: value / 3600 for name, value in parts.items()}
        return found | {"limit": limit, "rows": run.batch / devices}


def hours(value: float) -> str:
    """A number of hours, with two digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def tables(machines: Machines) -> Iterator[str]:
    """The lines of the page's tables."""
    found = towers()
    yield "| tower | GFLOP | of | million weights |"
    yield "| --- | --- | --- | --- |"
    for name, (operations, size) in found.items():
        unit = "a picture" if name.startswith("ViT") and not name.endswith("text") else "a token"
        yield (
            f"| {name} | {operations / 1e9:.3g} | {unit} | {size / 1e6:.0f} |"
            if size
            else (f"| {name} | {operations / 1e9:.3g} | {unit} | |")
        )
    yield ""
    head = "| devices | prepare, h | features, h | start, h | train, h | limited by | rows a device | device-hours |"
    for run in runs():
        yield f"**{run.name}**: {run.rows:,.0f} rows, {run.epochs} epochs, features {run.kept / 1e12:.3g} TB"
        yield ""
        yield head + (" price |" if machines.price else "")
        yield "| --- " * (8 + bool(machines.price)) + "|"
        for devices in DEVICES:
            of = machines.hours(run, devices)
            whole = devices * (of["features"] + of["train"])
            cells = [str(devices), *(hours(of[part]) for part in ("prepare", "features", "start", "train"))]
            cells += [of["limit"], f"{of['rows']:.0f}", f"{whole:,.0f}"]
            cells += [f"{whole * machines.price:,.0f}"] * bool(machines.price)
            yield f"| {' | '.join(cells)} |"
        yield ""
    yield "| rows | on each machine's disk, GB | in each process, GB | first start, h | later starts, min |"
    yield "| --- | --- | --- | --- | --- |"
    for rows in (1e7, 1e8, 2e9):
        first, later = (rows * MEASURED[name][0] for name in ("first start", "later start"))
        shared, own = rows * sum(ROW.values()) / 1e9, rows * PRIVATE / 1e9
        yield f"| {rows:,.0f} | {shared:.3g} | {own:.2g} | {hours(first / 3600)} | {hours(later / 60)} |"


def check(smoke: bool) -> float:
    """Predict times on this machine from that of a matrix product; returns the smallest of predicted by measured."""
    import open_clip
    from transformers import AutoConfig, AutoModel

    found, size, layers = towers(), *((4, 1) if smoke else (16, 12))
    left_NN = torch.randn(768, 3072)
    states_BH = torch.randn(50 * size, 768)
    took = median(seconds(lambda: states_BH @ left_NN) for _ in range(9))
    speed = 2 * states_BH.shape[0] * left_NN.numel() / took
    print(f"a matrix product of a layer's shape: {speed / 1e9:.0f} GFLOP/s")
    clip = open_clip.create_model("ViT-B-32", pretrained=None).visual.eval()
    config = AutoConfig.for_model("xlm-roberta", num_hidden_layers=layers, vocab_size=1000, hidden_size=768)
    encoder = AutoModel.from_config(config).encoder
    pixels_BCHW, states_BTH = torch.randn(4, 3, 224, 224), torch.randn(size, TOKENS, 768)

    def train() -> None:
        encoder(states_BTH).last_hidden_state.sum().backward()

    def frozen(work: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(work)

    tokens = size * TOKENS * found["XLM-R base"][0] * layers / 12
    works = {
        "ViT-B/32, 4 pictures": (4 * found["ViT-B-32"][0], frozen(lambda: clip(pixels_BCHW))),
        f"encoder, {size} texts": (tokens, frozen(lambda: encoder(states_BTH))),
        f"encoder, a training step of {size} texts": (TRAIN * tokens, train),
    }
    ratios = []
    for name, (operations, work) in works.items():
        work()
        took = median(seconds(work) for _ in range(3))
        ratios.append(operations / speed / took)
        print(f"{name}: predicted {operations / speed:.3g} s, measured {took:.3g} s")
    return min(ratios)


def with_tables(page: str, lines: list[str]) -> str:
    """The page with tables between its marks."""
    marks, content = r"(<!-- tables -->\n).*?(<!-- end of the tables -->)", "\n".join(lines).strip()
    return re.sub(marks, lambda m: f"{m[1]}\n{content}\n\n{m[2]}", page, flags=re.DOTALL)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=100, help="That a device sustains.")
    parser.add_argument("--network", type=float, default=25, help="GB/s that a device sends and receives.")
    parser.add_argument("--disk", type=float, default=2, help="GB/s that a machine reads of features.")
    parser.add_argument("--price", type=float, default=0, help="Of a device for an hour; 0: no prices.")
    parser.add_argument("--check", action="store_true", help="Compare with what this machine takes.")
    parser.add_argument("--write", action="store_true", help="Write docs/scaling.md.")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    lines = list(tables(Machines(asked.tflops * 1e12, asked.network * 1e9, asked.disk * 1e9, asked.price)))
    print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    if asked.write:
        PAGE.write_text(with_tables(page, lines), encoding="utf-8")
    if asked.smoke and with_tables(page, lines) != page:
        raise SystemExit(f"{PAGE}: has other tables than this script; run it with --write")
    if asked.check or asked.smoke:
        last_line("scaling", check(asked.smoke), GOAL)


if __name__ == "__main__":
    main()
