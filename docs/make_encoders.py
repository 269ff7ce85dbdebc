"""Write docs/encoders.md: what every kind of encoder and teacher can do, with tiny random weights of the true classes.

    python docs/make_encoders.py [OUT]

Exports are written, moved, and read by the other library in a process of its own, as `mclip-kit export` does.
tests/models/test_encoder_kinds.py and test_clip_kinds.py check what the page says.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEAD = """# Encoders and teachers

Written by `python docs/make_encoders.py`; tests/models/ checks the same tables. Each row is a class of transformers or
open_clip with tiny random weights: it was imported with a tokenizer of its own, trained with and without adapters and
checkpointing, saved and loaded again. Published weights were not at hand. Code that comes with a model is never run.

## Encoders

`encoder: hf:NAME_OR_DIR`. Of a decoder, pool the last token (`projector.pool: eos`) or the mean; the state of its first
token does not depend on the others, and `cls` is refused. A text without tokens, such as an empty one under a tokenizer
that adds none, gets the end token. LoRA: the layers that get adapters if `lora.targets` is left out; name others, such
as `[q_proj, k_proj, v_proj, o_proj]`, by that key. What is `no` is refused in one line before any step.

A number is the largest difference between the other library's embeddings and the model's. A letter is a refusal; its
reason stands below. The students are of head `linear`, for diffusers `altclip`. They pool the mean, for transformers
and diffusers the first token, of decoders the last."""
TEACHERS_HEAD = """
## Teachers

`teacher.model`: an open_clip name, `local-dir:DIR` or `hf-hub:ORG/NAME`. Each row is open_clip's own config of that
name at small sizes, saved as a folder with its tokenizer and preprocessing. Embeddings of pictures and texts, empty
ones too, are open_clip's. Checkpointing: of its image tower and of its text tower, where they are trained. The exports
are those of a student of XLM-R's class that shares the picture tower."""
Outcomes = dict[str, dict[str, str]]
"""Row -> column -> what stands there."""


def letters(outcomes: Outcomes) -> list[str]:
    """The table; long answers are refusals, which become letters with a line each below it."""
    columns = list(next(iter(outcomes.values())))
    reasons: dict[str, str] = {}
    lines = ["| " + " | ".join(["", *columns]) + " |", "| --- |" + " --- |" * len(columns)]
    for name, row in outcomes.items():
        cells = [
            reasons.setdefault(row[column], chr(ord("a") + len(reasons))) if len(row[column]) > 60 else row[column]
            for column in columns
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return [*lines, "", *(f"- {letter}: {reason}" for reason, letter in reasons.items())]


def exports(students: Mapping[str, Mapping[str, Any]], folder: Path) -> Outcomes:
    """What each format does with some students.

    Args:
        students: row -> format -> the student that is tried with it.
        folder: to work in.
    """
    from tests.interop.matrix import tried
    from tests.models.kinds import STUDENTS, refusals

    reasons = {name: refusals(models) for name, models in students.items()}
    found: Outcomes = {name: {} for name in students}
    for form in STUDENTS:
        fitting = {name: models[form] for name, models in students.items() if reasons[name][form] is None}
        outcomes = tried(form, fitting, folder / form)  # type: ignore[arg-type]
        for name in students:
            reason = reasons[name][form]
            found[name][form] = f"{outcomes[name].largest:.0e}" if reason is None else reason  # type: ignore[index]
    return found


def encoders(folder: Path) -> Outcomes:
    """The table of encoders."""
    from mclip_kit.models.clip import build_clip
    from mclip_kit.models.text_encoder import pretrained_encoder
    from tests import tiny
    from tests.models import kinds

    clip = build_clip(tiny.TEACHER)
    made = {kind: pretrained_encoder(str(kinds.save_kind(kind, folder / kind))) for kind in kinds.SHOWN}
    left = exports({kind: kinds.students(encoder, clip) for kind, encoder in made.items()}, folder / "exports")
    return {
        kinds.TITLES.get(kind, kind): {"class": type(encoder.model).__name__, **kinds.abilities(encoder), **left[kind]}
        for kind, encoder in made.items()
    }


def teachers(folder: Path) -> Outcomes:
    """The table of teachers."""
    from mclip_kit.models.clip import build_clip
    from mclip_kit.models.text_encoder import pretrained_encoder
    from tests.models import kinds
    from tests.models.teachers import TEACHERS, said_of, save_teacher

    encoder = pretrained_encoder(str(kinds.save_kind("xlm-roberta", folder / "encoder")))
    made = {name: build_clip(f"local-dir:{save_teacher(name, folder / name, everywhere=True)}") for name in TEACHERS}
    left = exports({name: kinds.students(encoder, clip) for name, clip in made.items()}, folder / "exports")
    return {name: {"config": TEACHERS[name][0], **said_of(clip), **left[name]} for name, clip in made.items()}


def main(out: Path = ROOT / "docs" / "encoders.md") -> None:
    """Write the page."""
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        lines = [HEAD, "", *letters(encoders(Path(temporary, "encoders")))]
        lines += [TEACHERS_HEAD, "", *letters(teachers(Path(temporary, "teachers")))]
    out.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
