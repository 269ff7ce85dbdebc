"""Sentences per second of teacher learning (MSE, all weights trained): ours against sentence-transformers.

    python benchmarks/distill_vs_sentence_transformers.py [--source MULTI30K] [--rounds 3] [--steps 6] [--smoke]

Both sides train the same student on the same 8,192 English and German pairs of Multi30K, 64 pairs (128 sentences) per
step: the sizes of XLM-R base with 250,000 pieces and random weights, mean pooling and a linear layer, AdamW, gradients
clipped at 1, float32, two threads. The peer is SentenceTransformerTrainer with MSELoss, used as its documentation
teaches a student new languages: a column has the teacher's embeddings of the English sentences, and each language
is a separate pass through the encoder. Ours is a stage of a recipe: rows of similar length share a batch, and both
languages share a pass.
The teacher has a text tower of the sizes of ViT-B/32. It runs once; its time is printed, and counted for neither side.
A round is measured from the end of its first step to the end of its last step, so reading data is included. The last
line has our sentences per second divided by the peer's. Without Multi30K the text is random; `--smoke` also uses small
towers.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from distill_vs_bare import LR, MAX_TOKENS, PAIRS, pace, read, started
from prepare import MULTI30K
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from side_by_side import alternate, last_line, ratio, spread
from transformers import TrainerCallback

from mclip_kit.train.loop import train
from mclip_kit.train.run import Run

GOAL = 3.0


class Ends(TrainerCallback):  # type: ignore[misc]
    """The time at which each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def peer(mine: Run, folder: Path, steps: int) -> tuple[SentenceTransformerTrainer, Ends]:
    """The same student, data and teacher embeddings in the trainer of sentence-transformers."""
    encoder = folder / "student"
    mine.model.encoder.save(encoder)
    words = Transformer(str(encoder), max_seq_length=MAX_TOKENS)
    width = mine.model.encoder.width
    dense = Dense(width, mine.model.width, activation_function=torch.nn.Identity())
    student = SentenceTransformer(modules=[words, Pooling(width, "mean"), dense], device="cpu")
    english, german = (read(folder / f"train.{language}") for language in ("en", "de"))
    labels_ND = mine.model.encode_teacher_text(english).numpy()
    columns = {"english": english, "german": german, "label": list(labels_ND)}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "peer"),
        max_steps=steps,
        per_device_train_batch_size=PAIRS,
        learning_rate=LR,
        weight_decay=0.01,
        max_grad_norm=1.0,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    ends = Ends()
    trainer = SentenceTransformerTrainer(
        model=student,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=MSELoss(student),
        callbacks=[ends],
    )
    return trainer, ends


def main() -> None:
    """Measure both in turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=MULTI30K, help="Multi30K, as its authors publish it.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="Steps per round; the first is not counted.")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mine, loop = started(folder, asked.source, asked.smoke)
        steps = train(mine.accelerator, loop, 0)
        trainer, ends = peer(mine, folder, asked.steps)

        def ours() -> float:
            times = [time.perf_counter() for _ in zip(range(asked.steps), steps, strict=False)]
            return pace(times)

        def peers() -> float:
            ends.times.clear()
            trainer.train()
            return pace(ends.times)

        figures = alternate({"ours": ours, "sentence-transformers": peers}, 0 if asked.smoke else asked.rounds)
    for name, values in figures.items():
        print(f"{name}: {spread(values)} sentences/s")
    ratios = ratio(figures, "ours", "sentence-transformers")
    print(f"ratio by round: {spread(ratios)}")
    last_line("distill_vs_sentence_transformers", ratios, GOAL)


if __name__ == "__main__":
    main()
