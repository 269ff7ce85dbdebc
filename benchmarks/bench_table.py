"""What `make bench` measures: one row for each script of speed or memory; a new script is a new row."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Bench:
    """A script.

    Attributes:
        script: its name without `.py`.
        section: of docs/performance.md: the words after `bench:` in the mark of its table.
        figures: name of a figure as the script prints it -> what is divided by what.
        options: with which it is measured, as one types them.
        times: how often it is started; more than once where a run gives a single ratio.
        minutes: after which a start is ended, on two cores.
        peer: of peers.py, in whose environment it runs.
        gpu: it needs one.
    """

    script: str
    section: str
    figures: dict[str, str]
    options: str = ""
    times: int = 1
    minutes: float = 20.0
    peer: str | None = None
    gpu: bool = False

    @property
    def command(self) -> str:
        """What reproduces the figures."""
        return f"python benchmarks/{self.script}.py {self.options}".strip()


BENCHES = (
    Bench(
        "startup",
        "start-up",
        {
            "startup_help": "0.3 s / the seconds of `--help`",
            "startup_train": "6 s / the seconds until ten steps on cached features",
            "startup": "the smaller of both",
        },
    ),
    Bench(
        "cached_vs_live",
        "cached features",
        {
            "cached_vs_live": "seconds of a naive step / of a cached step",
            "live_vs_naive": "seconds of a naive step / with `cache: off`",
            "cached_vs_bare": "seconds of a cached step / of the bare projectors",
            "fill_vs_live": "seconds of a naive epoch / of the epoch that fills the cache",
        },
        "--rounds 5",
    ),
    Bench(
        "cache_memory",
        "cached features",
        {"cache_memory": "peak memory with a million cached rows / with ten thousand"},
        times=3,
    ),
    Bench(
        "cache_scale",
        "cached features",
        {"cache_scale": "seconds of a search in the order of the rows / of ours"},
        "--rows 10000000",
        times=2,
    ),
    Bench(
        "stream_features",
        "cached features",
        {"stream_features": "shards brought in random order / with shuffle windows"},
    ),
    Bench(
        "prefetch",
        "reader processes",
        {
            "prefetch_wait": "share of a step with two readers that waits for its batch, at most",
            "prefetch": "seconds of a step without readers / with two",
        },
        "--batch 64 --steps 5 --rounds 5",
    ),
    Bench(
        "distill_vs_bare",
        "teacher learning",
        {"distill_vs_bare": "our sentences a second / those of the bare steps on the same batches"},
        minutes=40,
    ),
    Bench(
        "distill_vs_sentence_transformers",
        "teacher learning",
        {"distill_vs_sentence_transformers": "our sentences a second / sentence-transformers' trainer's"},
        "--rounds 5",
        minutes=40,
        peer="sentence-transformers",
    ),
    Bench(
        "trimmed_text",
        "teacher learning",
        {"trimmed_text": "sentences a second of trimmed texts / of 77 positions"},
    ),
    Bench(
        "contrastive_memory",
        "contrastive batches",
        {"contrastive_memory": "peak memory of open_clip's loss / of ours"},
        peer="open_clip",
    ),
    Bench(
        "contrastive_vs_open_clip",
        "contrastive batches",
        {
            "contrastive_vs_open_clip_locked": "image tower locked: our pairs a second / those of open_clip's loop",
            "contrastive_vs_open_clip": "both towers trained: our pairs a second / those of open_clip's loop",
        },
        minutes=40,
        peer="open_clip",
    ),
    Bench(
        "prepare",
        "preparing",
        {"prepare": "seconds of SentencePiece and fairseq-preprocess / of `mclip-kit prepare`"},
        "--rounds 5",
        peer="fairseq",
    ),
    Bench(
        "prepare_memory",
        "preparing",
        {"prepare_memory": "peak memory with 5.8 million lines / with 58,000"},
        times=3,
    ),
    Bench(
        "prepare_workers",
        "preparing",
        {
            "prepare_workers_pairs": "`--pairs`: seconds of one process / of two",
            "prepare_workers_webdataset": "`--webdataset`: seconds of one process / of two",
            "prepare_workers": "the smaller of both",
        },
        "--rounds 5",
    ),
    Bench(
        "engine",
        "preparing",
        {
            "engine_time": "seconds with `--engine ray` / `--engine local`, one machine",
            "engine": "files that are the same, byte for byte / all",
        },
        "--rounds 3",
    ),
    Bench(
        "tar_reading",
        "preparing",
        {"tar_reading": "pictures a second out of tars by offset / webdataset's"},
    ),
    Bench(
        "scale",
        "start of a run",
        {"scale": "seconds of the first start / of the second"},
        "--rows 1000000",
        times=3,
    ),
    Bench(
        "train_scale",
        "start of a run",
        {"train_scale": "60 bytes / the bytes a row of all processes, at most"},
        "--rows 1000000 --ranks 1 2",
        times=2,
        minutes=40,
    ),
    Bench(
        "long_run",
        "start of a run",
        {"long_run": "memory at a fifth of a long run / at its end"},
    ),
    Bench(
        "ranks",
        "ranks",
        {"ranks": "seconds of products in float64 / of ours"},
    ),
    Bench(
        "recall",
        "ranks",
        {
            "recall": "seconds of clip-benchmark / of ours",
            "recall_memory": "peak memory of clip-benchmark / of ours",
        },
        peer="clip-benchmark",
    ),
    Bench(
        "eval_again",
        "evaluating",
        {"eval_again": "seconds of the first `mclip-kit eval` / of a second, by another protocol"},
        minutes=40,
    ),
    Bench(
        "embed",
        "embedding",
        {
            "embed": "captions a second of `encode_text` / of sentence-transformers",
            "embed_padded": "captions a second of `encode_text` / of transformers, padded to 77",
        },
        "--captions 500 --rounds 5",
        peer="sentence-transformers",
    ),
    Bench(
        "embed_images",
        "embedding pictures",
        {
            "embed_images": "pictures a second of `mclip-kit embed` / of open_clip over a DataLoader",
            "embed_images_tower": "pictures a second of `mclip-kit embed` / of the tower alone",
        },
        "--pictures 300 --rounds 5",
        peer="open_clip",
    ),
    Bench(
        "embed_vs_clip_retrieval",
        "embedding pictures",
        {"embed_vs_clip_retrieval": "seconds of `clip-retrieval inference` / of `mclip-kit embed`, whole commands"},
        minutes=40,
    ),
    Bench(
        "index_scale",
        "embedding pictures",
        {"index_scale": "queries a second of hnsw / of the exact index"},
        "--vectors 200000",
        times=3,
    ),
    Bench(
        "gpu",
        "on a gpu",
        {
            "gpu_live": "ViT-L/14 learns from JPEG files: pictures a second / of the step alone",
            "gpu_cached": "cached TriKD: pairs a second / of the projectors alone",
            "gpu": "XLM-R large learns in bf16: its operations a second / the card's, of matrix products",
        },
        minutes=30,
        gpu=True,
    ),
)

OTHERS = {
    "bench": "runs this table",
    "side_by_side": "what scripts share",
    "torture": "kills and full disks, not speed",
    "torture_disk": "the same",
    "torture_inputs": "the same",
    "scaling": "predicts; writes its own page",
    "calibrate_results": "quality",
    "int8_recall": "quality",
    "losses": "quality",
    "m2m_results": "quality",
    "methods": "quality",
    "mteb_retrieval": "equal figures",
    "mte_results": "quality",
    "pool_results": "quality",
    "results": "quality",
    "templates": "quality",
    "tried": "quality",
    "unpaired_results": "quality",
}
"""Scripts that print a ratio and are not measured here -> why."""
