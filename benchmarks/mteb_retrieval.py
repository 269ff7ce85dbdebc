"""Retrieval figures of mteb's own runner on our sentence-transformers export, beside those of `mclip-kit eval`.

    python -m pip install mteb
    python benchmarks/mteb_retrieval.py MODEL [--data data/emoji] [--split test] [--langs en,de,...] [--smoke]

Two tasks in the manner of MIEB are made from a prepared folder, text to image and image to text, with a subset for each
language; `mteb.evaluate` runs them on the exported folder. A picture or a caption has several right answers where
pictures look the same or have several captions, so mteb's figure that is compared is `hit_rate_at_k`: the share of
queries with any right answer among the first k, which is protocol `any` of `mclip-kit eval`. Where every query has one
answer, as in MIEB's XM3600, it is mteb's `recall_at_k`. mteb rounds to 5 decimals. Of equal scores, mteb puts the
larger id first and `mclip-kit eval` the wrong answer, so figures can differ where captions of different pictures are
the same; the script counts those. sentence-transformers does not repair dirty texts: of a model with `text_cleaning:
ftfy`, mteb is given the repaired captions.

`--smoke` takes a tiny model with random weights, and needs no MODEL. The last line has the share of figures that are
the same; it ends with an error if one differs.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, Features, Image, Value
from eval_again import built
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SentenceTransformerEncoderWrapper
from side_by_side import last_line
from tables import head, row

from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.evaluate.ranks import KS
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.interop.export import export
from mclip_kit.models.encoding import CLEANERS
from mclip_kit.models.multilingual_clip import MultilingualClip, load

WAYS = {"t2i": ("text", "image"), "i2t": ("image", "text")}
"""Direction -> what queries are, and what is looked for."""
CODES = {
    **{"ar": "ara-Arab", "cs": "ces-Latn", "de": "deu-Latn", "en": "eng-Latn", "es": "spa-Latn", "fa": "fas-Arab"},
    **{"fr": "fra-Latn", "id": "ind-Latn", "it": "ita-Latn", "ja": "jpn-Jpan", "ko": "kor-Hang", "pl": "pol-Latn"},
    **{"pt": "por-Latn", "ru": "rus-Cyrl", "tr": "tur-Latn", "zh": "zho-Hans"},
}
"""Language -> mteb's name of it."""
Figures = dict[str, dict[str, float]]
"""Language -> direction and k, such as `t2i_r1` -> share of queries, rounded to 5 decimals."""


def task(way: str, split: str, subsets: dict[str, dict[str, Any]]) -> AbsTaskRetrieval:
    """A task of one direction; `subsets`: language -> its corpus, queries and right answers."""

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Prepared{way.upper()}Retrieval",
            description="Pictures and captions of a prepared folder.",
            dataset={"path": "a prepared folder", "revision": "1"},
            type="Any2AnyMultilingualRetrieval",
            category=way,
            modalities=["text", "image"],
            eval_splits=[split],
            eval_langs={language: [CODES[language]] for language in subsets},
            main_score="hit_rate_at_1",
        )
        k_values = KS

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            self.dataset = {language: {split: subset} for language, subset in subsets.items()}
            self.data_loaded = True

    return Task()


def right(queries: dict[str, int], answers: dict[str, int]) -> dict[str, dict[str, int]]:
    """Query -> its right answers -> 1; both sides by their groups."""
    of_group = defaultdict(dict)
    for name, group in answers.items():
        of_group[group][name] = 1
    return {name: of_group[group] for name, group in queries.items() if of_group[group]}


def tasks(model: MultilingualClip, captions: Captions, split: str, languages: list[str]) -> dict[str, AbsTaskRetrieval]:
    """Direction -> its task."""
    images_G = captions.gallery(split)
    pictures = {f"picture {image}": int(captions.groups[image]) for image in images_G.tolist()}
    column = [captions.picture(image) for image in images_G.tolist()]
    features = Features({"id": Value("string"), "image": Image()})
    sides: dict[str, Any] = {"image": Dataset.from_dict({"id": list(pictures), "image": column}, features=features)}
    subsets: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    for language in languages:
        rows_Q = captions.select(split, [language])
        texts = {f"text {line}": int(captions.groups[captions.images[line]]) for line in rows_Q.tolist()}
        clean = CLEANERS[model.text_cleaning] or str
        column = [clean(text) for text in captions.texts[rows_Q].tolist()]
        sides["text"] = Dataset.from_dict({"id": list(texts), "text": column})
        groups = {"image": pictures, "text": texts}
        for way, (query, answer) in WAYS.items():
            subsets[way][language] = {
                "queries": sides[query],
                "corpus": sides[answer],
                "relevant_docs": right(groups[query], groups[answer]),
                "top_ranked": None,
            }
    return {way: task(way, split, subset) for way, subset in subsets.items()}


def theirs(folder: Path, chosen: dict[str, AbsTaskRetrieval], split: str) -> Figures:
    """What mteb finds with an exported folder."""
    model = SentenceTransformerEncoderWrapper(str(folder), device="cpu")
    model.mteb_model_meta.modalities = list(model.model.modalities)  # mteb takes every folder for one of texts alone
    found: Figures = defaultdict(dict)
    for way, one in chosen.items():
        result = mteb.evaluate(model, one, cache=None, co2_tracker=False, show_progress_bar=False)
        for scores in result.task_results[0].scores[split]:
            for k in KS:
                found[scores["hf_subset"]][f"{way}_r{k}"] = scores[f"hit_rate_at_{k}"]
    return dict(found)


def ours(model: MultilingualClip, captions: Captions, split: str, languages: list[str]) -> Figures:
    """What `mclip-kit eval` finds, rounded as mteb rounds."""
    results = evaluate(model, captions, split, languages, teacher_language=None)
    return {
        language: {f"{way}_r{k}": round(result.scores()[f"{way}_r{k}"] / 100, 5) for way in WAYS for k in KS}
        for language, result in results.items()
    }


def same_texts(captions: Captions, split: str, language: str) -> int:
    """Captions that a picture of another group has, too."""
    groups = defaultdict(set)
    rows_Q = captions.select(split, [language])
    for line in rows_Q.tolist():
        groups[captions.texts[line]].add(int(captions.groups[captions.images[line]]))
    return int(np.sum([len(groups[captions.texts[line]]) > 1 for line in rows_Q.tolist()]))


def main() -> None:
    """Export, score twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--langs", default="en,de,fr,zh,ar,ja")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if asked.smoke:
            model, _, asked.data = built(Path(temporary), 12, small=True)
            asked.langs = ",".join(read_captions(asked.data).languages.present())
        elif asked.model:
            model = load(asked.model, device="cpu")
        else:
            parser.error("give MODEL, or --smoke")
        captions, languages = read_captions(asked.data), asked.langs.split(",")
        folder = Path(temporary) / "export"
        export(model, "sentence-transformers", folder)
        found = theirs(folder, tasks(model, captions, asked.split, languages), asked.split)
    own = ours(model, captions, asked.split, languages)
    names = list(own[languages[0]])
    print(f"mteb {mteb.__version__} on the sentence-transformers export, and mclip-kit eval where it differs\n")
    print("\n".join(head("language", *(name.replace("_r", " R@").upper() for name in names), "same captions")))
    for language in languages:
        pairs = [(found[language][name], own[language][name]) for name in names]
        cells = [f"{100 * a:.3f}" if a == b else f"{100 * a:.3f} ({100 * b:.3f})" for a, b in pairs]
        print(row(language, *cells, str(same_texts(captions, asked.split, language))))
    same = [found[language][name] == own[language][name] for language in languages for name in names]
    if not all(same):
        print("mteb_retrieval: figures differ", file=sys.stderr)
    last_line("mteb_retrieval", sum(same) / len(same), 1.0)
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
