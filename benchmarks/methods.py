"""Write the measured part of docs/methods.md: what each loss, start and road gives on the embedded corpus.

    python benchmarks/methods.py [--smoke]

Nothing is trained here: the scores that other scripts keep in runs/ are collected, of all seeds at hand. Each script
computes what is missing: losses.py (losses, widths), unpaired_results.py (roads to languages without pairs),
templates.py, m2m_results.py, calibrate_results.py. A table says which seeds it has; a row without scores is left out
and named on the terminal. `--smoke` computes the losses of the first stage on made-up features, and prints the part.
The last line has the never-trained R@1 of the row that is best by it on validation, divided by 20.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import losses
from tables import Scores, head, row, spread
from templates import TEMPLATES

from mclip_kit.files import write_text

GOAL, WANTED = 1.0, 20.0  # R@1, mean of the languages that are not trained
PAGE = Path("docs", "methods.md")
START, END = "<!-- written by benchmarks/methods.py -->", "<!-- end of what benchmarks/methods.py writes -->"
COLUMNS = {  # the column, and the keys that scripts have for it
    "English": ("English",),
    "trained": ("trained",),
    "never trained": ("never trained", "never"),
    "never trained, R@10": ("never trained, R@10", "never10"),
    "plain, never trained": ("plain, never trained", "plain"),
    "CPU seconds": ("seconds",),
}
CALIBRATED = {"Korean": ("starved",), "English": ("english",), "others": ("others",), "ten": ("ten",)}


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, what it is, and where scripts keep its scores.

    Attributes:
        folder: below runs/, `*` is the seed's folder.
        inside: keys to its test scores.
        valid: keys to its validation scores.
    """

    label: str
    meaning: str
    folder: str
    inside: tuple[str, ...] = ("test",)
    valid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A table."""

    title: str
    about: str
    rows: tuple[Row, ...]
    columns: dict[str, tuple[str, ...]]


def of_losses(part: str, meanings: dict[str, str]) -> tuple[Row, ...]:
    """The rows of losses.py."""
    return tuple(
        Row(name, meanings[name], f"losses/*/{part}/{losses.plain(name)}", valid=("valid",))
        for name in losses.PARTS[part]
    )


TEXT = {
    "mse": "squared distance to the teacher's embedding, both of length 1 (mCLIP, AltCLIP)",
    "cosine": "one minus the cosine to the teacher's embedding",
    "contrastive": "the teacher's embedding is found among those of the batch",
    "sigmoid": "each pair of the batch is judged by itself; scale and bias are learned (SigLIP)",
    "kl": "similarities to the batch are distributed as the teacher's are (CLIP-KD)",
    "mse + kl": "both",
    "relational": "similarities inside the batch are the teacher's; nothing ties the axes to the teacher's",
    "cosine + relational": "both",
}
PICTURES = {
    losses.TODAY: "`quickstart_trikd`: picture-text contrastive, 0.1 times teacher-text contrastive",
    "sigmoid": "the same with the sigmoid loss between picture and text",
    "kl": "similarities to the pictures of the batch are distributed as the teacher's text's are",
    "cosine": "cosine to picture and to teacher's text",
    "contrastive + cosine": "picture-text contrastive, and cosine to the teacher's text",
    "contrastive + kl": "picture-text contrastive, and kl",
    "contrastive + relational": "picture-text contrastive, and relational to the teacher's text",
}


def of_unpaired(label: str, meaning: str, folder: str, inside: str = "end") -> Row:
    """A row of unpaired_results.py."""
    valid = ("valid",) if inside == "end" else ()
    return Row(label, meaning, f"unpaired/*/{folder}", (inside,), valid)


SECTIONS = (
    Section(
        "First stage alone: losses on parallel text",
        "One loss between the student's text and the teacher's, 15 epochs, in English, French and Chinese.",
        of_losses("text", TEXT),
        COLUMNS,
    ),
    Section(
        "Second stage: losses on pictures",
        "After mse on parallel text, 30 epochs of pictures with captions in the same three languages.",
        of_losses("pictures", PICTURES),
        COLUMNS,
    ),
    Section(
        "Starts and roads to languages without pairs",
        "`quickstart_trikd` as a recipe, with what is named. Unpaired text is a thousand lines a language.",
        (
            of_unpaired("today", "`quickstart_trikd`, at its own learning rates", "today"),
            of_unpaired("closed form", "`projector.init: ridge`, before the first step", "ridge", "start"),
            of_unpaired("closed form, trained", "the same after both stages", "ridge"),
            of_unpaired("moved means", "today; a language's mean state is moved to that of trained ones", "means"),
            of_unpaired("CORAL", "the same, and the covariance too", "coral"),
            of_unpaired("mined, second stage", "pairs that the frozen encoder finds join the second stage", "mined"),
            of_unpaired("mined", "`quickstart_unpaired`: they are rows of both stages", "mined-both"),
        ),
        COLUMNS,
    ),
    Section(
        "English text alone",
        "Two linear layers on the frozen encoder, no picture and no other language (M2M); never trained are thirteen.",
        (Row("m2m", "`m2m`: mse and relational on English text", "m2m/*", ()),),
        COLUMNS,
    ),
    Section(
        "Templates with a frozen teacher",
        "The teacher's target is the mean of its embeddings of a text in several templates; one teacher for all seeds.",
        tuple(
            Row(name, f"`templates`: {name}", f"templates/*/{losses.plain(name)}", valid=("valid",))
            for name in TEMPLATES
        ),
        COLUMNS,
    ),
    Section(
        "Repair: trunk calibration of a model that never saw Korean",
        "R@1. The recipe `quickstart` without Korean in its two student stages, then `calibrate` in ten languages.",
        (
            Row("without Korean", "before calibration", "calibrate/*/starved"),
            Row("calibrated", "after it", "calibrate/*/calibrated"),
            Row("with Korean from the start", "a bound", "calibrate/*/whole"),
        ),
        CALIBRATED,
    ),
)


def inner(scores: Scores, keys: tuple[str, ...]) -> Scores:
    """A part of kept scores."""
    for key in keys:
        scores = scores[key]
    return scores


def figures(kept: Scores, place: Row) -> Scores:
    """Test scores of a row; the seconds stand beside them in some scripts."""
    return {"seconds": kept["seconds"]} | inner(kept, place.inside) if "seconds" in kept else inner(kept, place.inside)


def at_hand(place: Row, root: Path) -> dict[str, Scores]:
    """What is kept of a row, by seed."""
    before, _, after = place.folder.partition("*")
    files = {
        folder.name: folder / after.strip("/") / "scores.json" for folder in sorted((root / before).glob("seed-*"))
    }
    return {
        seed.removeprefix("seed-"): json.loads(file.read_text(encoding="utf-8"))
        for seed, file in files.items()
        if file.is_file()
    }


def cell(seeds: list[Scores], keys: tuple[str, ...]) -> str:
    """Mean and standard deviation of a column; empty if a seed has no such figure."""
    found = [[seed[key] for key in keys if seed.get(key) is not None] for seed in seeds]
    return spread([values[0] for values in found]) if all(found) else ""


def table(section: Section, root: Path) -> Iterator[str]:
    """A section with the rows that are at hand."""
    found = {place: at_hand(place, root) for place in section.rows}
    for place in (place for place, kept in found.items() if not kept):
        print(f"no scores of {section.title}: {place.label} ({root / place.folder})")
    if not any(found.values()):
        return
    yield from (f"### {section.title}", "", section.about, "")
    yield from head("T2I", *section.columns, "seeds", "what it is")
    for place, kept in ((place, kept) for place, kept in found.items() if kept):
        seeds = [figures(scores, place) for scores in kept.values()]
        cells = [cell(seeds, keys) for keys in section.columns.values()]
        yield row(place.label, *cells, ", ".join(kept), place.meaning)
    yield ""


def widths(root: Path) -> Iterator[str]:
    """Matryoshka, by width."""
    found = at_hand(Row("", "", "losses/*/widths"), root)
    if not found:
        print(f"no scores of Matryoshka ({root / 'losses'})")
        return
    yield from ("### Matryoshka: both stages with `dims`, and without", "")
    yield f"R@1 of the first numbers of an embedding, mse then TriKD. Seeds: {', '.join(found)}."
    yield ""
    yield from losses.widths_table(list(found.values()))
    yield ""


def part(root: Path) -> str:
    """What stands between the marks."""
    return "\n".join(
        [
            "Text to image, percent, on the test split of the embedded corpus (398 pictures that no stage has seen): "
            "R@1 unless a column says R@10, mean ± standard deviation over seeds. A seed has its own teacher, the "
            "first stage of `quickstart`. `trained` are English, French and Chinese, `never trained` eleven others, "
            "`plain` the pictures with a name of their own, neither composed nor flags. Options (learning rate, "
            "temperature, weight) are those that are best on the validation split with seed 1, and are used for all "
            "seeds. CPU seconds are those of the process, so that other work on the machine does not count; features "
            "that were not in the cache yet are in them.",
            "",
            *(line for section in SECTIONS[:2] for line in table(section, root)),
            *widths(root),
            *(line for section in SECTIONS[2:] for line in table(section, root)),
        ]
    )


def best(root: Path) -> tuple[str, float]:
    """The row with the best never-trained R@1 on validation: its label, and that R@1 on test."""
    found: list[tuple[float, str, float]] = []
    for section in SECTIONS:
        for place in (place for place in section.rows if place.valid):
            kept = list(at_hand(place, root).values())
            pairs = [(never(inner(own, place.valid)), never(inner(own, place.inside))) for own in kept]
            if pairs and None not in sum(pairs, ()):
                valid, test = (mean(values) for values in zip(*pairs, strict=True))
                found.append((valid, f"{section.title}: {place.label}", test))
    _, label, test = max(found)
    return label, test


def never(scores: Scores) -> float | None:
    """R@1 of the languages that are not trained, if it is there."""
    return next((float(scores[key]) for key in COLUMNS["never trained"] if key in scores), None)


def main() -> None:
    """Write the part, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    root = Path("runs", "methods-smoke") if asked.smoke else Path("runs")
    if asked.smoke:
        losses.rows_of(losses.Seed(1, partial(losses.made_up, 1), root / "losses" / "seed-1"), ["text"])
        print(part(root))
    else:
        before, rest = PAGE.read_text(encoding="utf-8").split(START)
        write_text(PAGE, f"{before}{START}\n\n{part(root)}\n{END}{rest.split(END)[1]}")
    label, test = best(root)
    print(f"best on validation: {label}, R@1 {test:.1f}")
    print(f"methods ratio={test / WANTED:.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
