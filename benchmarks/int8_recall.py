"""What 8-bit weights cost in recall: the towers of a model as ONNX graphs, float32 and int8.

    python benchmarks/int8_recall.py MODEL --data DATA [--split test] [--langs en,de] [--tune] [--smoke]

Both graphs are written as `mclip-kit export onnx` writes them, run by onnxruntime on the CPU one text and one picture
at a time, as a search box does (int8 scales activations by what is in the batch), and scored as `mclip-kit eval` does.
Prints a table in Markdown: recall of text-to-image and image-to-text with the text tower, the image tower or both in
int8, the mean over languages and the worst language, and the sizes of the graphs. `--tune` compares ways to quantise
instead: choose on the split `valid`. `--smoke` takes a tiny model with random weights, no MODEL and DATA.
The last line has R@1 of text-to-image with both towers in int8, mean over languages, divided by that in float32.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from eval_again import built
from side_by_side import last_line
from tables import head, row

from mclip_kit import load
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.evaluate.retrieval import score
from mclip_kit.interop import onnx_graph
from mclip_kit.interop.onnx_graph import ImageTower, TextTower, save, trace
from mclip_kit.models.multilingual_clip import MultilingualClip

GOAL = 0.95
Graphs = dict[str, dict[str, Path]]
WAYS: dict[str, dict[str, Any]] = {
    "int8": {},
    "per channel": {"per_channel": True},
    "reduced range": {"reduce_range": True},
    "per channel, reduced range": {"per_channel": True, "reduce_range": True},
    "without tables": {"op_types_to_quantize": ["MatMul", "Gemm"]},
}
"""Ways to quantise -> what they change in `onnx_graph.OPTIONS`."""


def write(model: MultilingualClip, folder: Path, ways: list[str]) -> Graphs:
    """Way -> tower -> its graph."""
    ids_NT, _ = model.encoder.pad(model.student_tokens(["a red apple on a table", "x"]))
    size = model.clip[0].preprocess["size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    length = torch.export.Dim("length", max=model.encoder.positions)
    programs = {
        "text": trace(TextTower(model), "text", ids_NT.int(), {1: length}),
        "image": trace(ImageTower(model), "image", torch.zeros(2, 3, height, width), {}),
    }
    graphs: Graphs = {}
    usual = dict(onnx_graph.OPTIONS)
    for way in ["float32", *ways]:
        onnx_graph.OPTIONS.clear()
        onnx_graph.OPTIONS.update(usual | WAYS.get(way, {}))
        graphs[way] = {}
        for tower, program in programs.items():
            path = graphs[way][tower] = folder / way / tower / "model.onnx"
            path.parent.mkdir(parents=True)
            save(program, path, int8=way != "float32")
    return graphs


def size(graph: Path) -> str:
    """Megabytes of a graph and its weights."""
    return f"{sum(file.stat().st_size for file in graph.parent.iterdir()) / 1e6:.1f} MB"


def embedder(graph: Path) -> Callable[[np.ndarray], np.ndarray]:
    """One input (1, ...) to its embedding (D,)."""
    session = onnxruntime.InferenceSession(graph)
    name = session.get_inputs()[0].name
    return lambda value: np.asarray(session.run(None, {name: value})[0][0])


def recalls(
    captions: Captions, split: str, rows_Q: np.ndarray, image_GD: np.ndarray, text_QD: np.ndarray
) -> dict[str, dict[str, float]]:
    """Language -> recalls, in percent."""
    images_G = captions.gallery(split)
    found = {}
    for language in dict.fromkeys(captions.languages[rows_Q].tolist()):
        own_Q = captions.languages[rows_Q] == language
        places_Q = np.searchsorted(images_G, captions.images[rows_Q[own_Q]])
        result = score(image_GD, text_QD[own_Q], captions.groups[images_G], places_Q, captions.strata[images_G])
        found[language] = result.scores()
    return found


def main() -> None:
    """Write, embed, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--langs", default="all")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if asked.smoke:
            model, _, asked.data = built(Path(temporary), 12, small=True)
        elif asked.model and asked.data:
            model = load(asked.model, device="cpu")
        else:
            parser.error("give MODEL and --data DATA, or --smoke")
        measure(asked, model)


def measure(asked: argparse.Namespace, model: MultilingualClip) -> None:
    """Print the tables of a model and their last line."""
    captions = read_captions(asked.data)
    rows_Q = captions.select(asked.split, asked.langs if asked.langs == "all" else asked.langs.split(","))
    ids = [model.encoder.pad([tokens])[0].int().numpy() for tokens in model.student_tokens(captions.texts[rows_Q])]
    transform = model.clip[0].transform
    pixels = [transform(captions.open(image))[None].numpy() for image in captions.gallery(asked.split).tolist()]
    ways = list(WAYS) if asked.tune else ["int8"]
    with tempfile.TemporaryDirectory() as temporary:
        graphs = write(model, Path(temporary), ways)
        inputs = {"text": ids, "image": pixels}
        found = {
            (way, tower): np.stack([embed(value) for value in inputs[tower]])
            for way, towers in graphs.items()
            for tower, graph in towers.items()
            for embed in [embedder(graph)]
        }
        sizes = {way: {tower: size(graph) for tower, graph in towers.items()} for way, towers in graphs.items()}
    names = [f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
    print(f"{asked.model or 'a tiny model'}: {len(pixels)} pictures and {len(ids)} captions of {asked.split}\n")
    titles = [name.replace("_r", " R@").upper() for name in names]
    print("\n".join(head("text", "image", "text graph", "image graph", *titles, "largest loss of T2I R@1")))
    base: dict[str, dict[str, float]] = {}
    shares = []
    for text, image in [("float32",) * 2, *(p for w in ways for p in ((w, "float32"), ("float32", w), (w, w)))]:
        scores = recalls(captions, asked.split, rows_Q, found[image, "image"], found[text, "text"])
        base = base or scores
        lost = {language: base[language]["t2i_r1"] - own["t2i_r1"] for language, own in scores.items()}
        worst = max(lost, key=lambda language: lost[language])
        cells = [f"{np.mean([own[name] for own in scores.values()]):.1f}" for name in names]
        print(row(text, image, sizes[text]["text"], sizes[image]["image"], *cells, f"{lost[worst]:.1f} ({worst})"))
        if text == image != "float32":
            means = [np.mean([own["t2i_r1"] for own in of.values()]) for of in (scores, base)]
            shares.append(float(means[0] / max(means[1], 1e-9)))
    if not asked.tune:
        both = recalls(captions, asked.split, rows_Q, found["int8", "image"], found["int8", "text"])
        print("\n" + "\n".join(head("language", *(f"{title}: float32, int8" for title in titles))))
        for language, own in base.items():
            print(row(language, *(f"{own[name]:.1f}, {both[language][name]:.1f}" for name in names)))
    last_line("int8_recall", shares[0], GOAL)


if __name__ == "__main__":
    main()
