"""A million vectors: building, memory, queries a second and recall of every kind of index.

    python benchmarks/index_scale.py [--vectors 1000000] [--width 512] [--threads 2] [--smoke]

Vectors are of 1,000 clusters, L2-normalised float32; queries are drawn likewise. Each kind is built and searched in a
process of its own, whose largest memory is told. The last line has hnsw's queries per second divided by those of the
exact index, one query at a time (goal 10).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import last_line, seconds

GOAL, TOP, QUERIES, CLUSTERS = 10.0, 10, 200, 1000
KINDS = ("flat", "hnsw", "ivfpq")


def write(folder: Path, count: int, width: int) -> None:
    """Vectors in clip-retrieval's layout, and queries."""
    (folder / "img_emb").mkdir(parents=True)
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((CLUSTERS, width), np.float32)

    def drawn(rows: int) -> np.ndarray:
        vectors = centres[draw.integers(0, CLUSTERS, rows)] + 0.7 * draw.standard_normal((rows, width), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for number, start in enumerate(range(0, count, 100_000)):
        np.save(folder / "img_emb" / f"img_emb_{number:03}.npy", drawn(min(100_000, count - start)))
    np.save(folder / "queries.npy", drawn(QUERIES))


def measure(folder: Path, kind: str, threads: int) -> dict[str, float]:
    """Build, open, search."""
    import faiss

    from mclip_kit.search.index import build, gone_of, nearest, open_index

    faiss.omp_set_num_threads(threads)
    queries = np.load(folder / "queries.npy")
    found: dict[str, float] = {}
    found["build s"] = seconds(lambda: found.update(recall=build(folder, folder / kind, kind).recall or 1.0))
    opened: list = []
    found["open s"] = seconds(lambda: opened.extend(open_index(folder / kind)))
    _, index, rows = opened
    gone = gone_of(rows)
    found["queries/s, one at a time"] = QUERIES / seconds(
        lambda: [nearest(index, query[None], TOP, gone) for query in queries]
    )
    found["queries/s, 200 at once"] = QUERIES / seconds(lambda: nearest(index, queries, TOP, gone))
    found["file GB"] = (folder / kind / "index.faiss").stat().st_size / 1e9
    found["memory GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found


def main() -> None:
    """Write the vectors, measure each kind, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "KIND"), help="what the processes are started with")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(Path(asked.one[0]), asked.one[1], asked.threads)))
        return
    count, width = (12_000, 16) if asked.smoke else (asked.vectors, asked.width)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "vectors"
        write(folder, count, width)
        results = {}
        for kind in KINDS:
            words = [sys.executable, __file__, "--threads", str(asked.threads), "--one", str(folder), kind]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            results[kind] = json.loads(done.stdout.splitlines()[-1])
            print(kind, json.dumps({name: round(value, 3) for name, value in results[kind].items()}), flush=True)
    columns = list(results["flat"])
    print(f"\n| {count:,} vectors of {width} | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for kind, row in results.items():
        print(f"| {kind} | " + " | ".join(f"{row[name]:.3g}" for name in columns) + " |")
    one = "queries/s, one at a time"
    last_line("index_scale", results["hnsw"][one] / results["flat"][one], GOAL)


if __name__ == "__main__":
    main()
