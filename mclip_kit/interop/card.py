"""The card of a model folder or an exported folder: README.md, with the front matter that the Hugging Face hub reads.

What is known of a model is kept in its card.json: `mclip-kit train` and `import` begin it, `eval` adds scores. The card
is written from it, again whenever it changes, unless somebody has changed README.md.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclip_kit import layout
from mclip_kit.errors import DiskError
from mclip_kit.files import write_json, write_text
from mclip_kit.interop.facts import RECALLS, Facts, cuts, facts_of, hub_id, is_new, one_licence, parameters, read_json
from mclip_kit.locks import locked
from mclip_kit.storage import fetch
from mclip_kit.urls import values_with_urls

LIBRARY, TASK = "mclip-kit", "zero-shot-image-classification"
TAGS = ["clip", "multilingual", "image-text-retrieval", "mclip-kit"]
USE = """
import mclip_kit
model = mclip_kit.load("{folder}")
text_ND = model.encode_text(["ein Hund", "un chien"])
image_ND = model.encode_image(["photo.jpg"])
print(model.similarity(text_ND, image_ND))
"""
CITATIONS = """
```bibtex
@inproceedings{chen2023mclip,
  title = {{mCLIP}: Multilingual {CLIP} via Cross-lingual Transfer},
  author = {Chen, Guanhua and Hou, Lu and Chen, Yun and Dai, Wenliang and others},
  booktitle = {Proceedings of ACL},
  year = {2023}
}
@article{chen2022altclip,
  title = {{AltCLIP}: Altering the Language Encoder in {CLIP} for Extended Language Capabilities},
  author = {Chen, Zhongzhi and Liu, Guang and Zhang, Bo-Wen and Ye, Fulong and others},
  journal = {arXiv:2211.06679},
  year = {2022}
}
```"""


@dataclass(frozen=True)
class Export:
    """What a card says of an export.

    Its format and library, what `use` needs as pip takes it, lines of use, what differs, and figures of parity.
    """

    name: str
    library: str
    install: str
    use: str
    notes: list[str]
    differences: Mapping[str, float]
    hub: tuple[str, str]
    """`library_name` and `pipeline_tag` of the front matter."""
    encoder_only: bool = False
    """Whether it has nothing but the text encoder: the model's scores and image vectors are not its own."""


def record(folder: Path, facts: Facts | Callable[[Facts], Facts]) -> str | None:
    """Keep what is known of a model, and write its README.md.

    Args:
        folder: the model folder.
        facts: of its card.json; they replace those of the same names. A function gets what the card has; no other
            process changes it meanwhile.
    Returns:
        That card.json was damaged, and why README.md stays as it is; None: both were written.
    """
    card = folder / layout.CARD
    try:
        with locked(card, wait=True):
            known = facts_of(folder)
            lost = card.exists() and not known
            if lost:
                card.replace(folder / layout.DAMAGED_CARD)
            stays = _write(folder, values_with_urls({**known, **(facts(known) if callable(facts) else facts)}))
            new = f"{card}: damaged; it is kept as {layout.DAMAGED_CARD}, and a new one was begun"
            return "; ".join(filter(None, (new if lost else None, stays))) or None
    except DiskError as error:
        return f"the card stays as it was: {error}"


def _write(folder: Path, known: Facts) -> str | None:
    readme = fetch(folder / layout.README)
    edited = readme.exists() and _hash(readme.read_text(encoding="utf-8", errors="replace")) != known.get("readme")
    text = render(folder, known, None)
    if not edited:
        known["readme"] = _hash(text)
    write_json(folder / layout.CARD, known)
    if not edited:
        write_text(readme, text)
    return f"{readme}: not written, since it was changed by hand; remove it to have a new one" if edited else None


def write_card(folder: Path, source: Path | None, export: Export) -> None:
    """Write README.md of an exported folder.

    Args:
        folder: the exported folder.
        source: the model's folder, whose card this one repeats; None: nothing is known but the export.
        export: what is known of it.
    """
    write_text(folder / layout.README, render(source, facts_of(source) if source else {}, export))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def render(source: Path | None, facts: Facts, export: Export | None) -> str:
    """The text of README.md.

    Args:
        source: the model folder; None: its configs are not known.
        facts: of its card.json.
        export: None for the model folder itself.
    """
    config = read_json(source / layout.MODEL_CONFIG) if source else {}
    alone = export is not None and export.encoder_only
    if alone:
        kept = {tower: base for tower, base in facts.get("bases", {}).items() if tower in ("encoder", "all towers")}
        facts = {**facts, "bases": kept, "evaluations": [], "images": None, "same_images": None}
    front = _front_matter(config, facts, export.hub if export else (LIBRARY, TASK))
    title = f"in the format of {export.library}, by mclip-kit" if export else "by mclip-kit"
    what = "The text encoder of a multilingual CLIP" if alone else "A CLIP with a multilingual text tower"
    lines = ["---", front, "---", "", f"# {what}, {title}", ""]
    lines += [f"- {line}" for line in _about(source, config, facts, alone)]
    use = export.use if export else USE
    lines += ["", "## Use", ""]
    if export:
        lines += [f"Without mclip-kit: `python -m pip install {export.install}`", ""]
    lines += ["```python", use.replace("{folder}", "THIS_FOLDER").strip(), "```", ""]
    if export:
        lines += [f"- {note}" for note in export.notes] + [""] * bool(export.notes)
    if export and export.differences:
        lines += ["## The same as the model", "", "| samples | largest difference from the model |", "| --- | --- |"]
        lines += [f"| {group} | {value:.1e} |" for group, value in export.differences.items()] + [""]
    lines += [*_scores(facts), *_training(facts), "## Citation", CITATIONS, ""]
    return "\n".join(lines)


def _front_matter(config: Mapping[str, Any], facts: Facts, hub: tuple[str, str]) -> str:
    """YAML, as the hub reads it; scores as its model-index."""
    from huggingface_hub import EvalResult, ModelCardData  # the command line starts faster

    results = [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=evaluation["dataset"],
            dataset_name=evaluation["dataset"],
            dataset_config=row["language"],
            dataset_split=evaluation["split"],
            metric_type="recall",
            metric_name=f"{column}, {row['language']}",
            metric_value=round(100 * row["metrics"][name], 2),
        )
        for evaluation in facts.get("evaluations", [])
        for row in evaluation["rows"]
        if row["tower"] == "student"
        for column, name in RECALLS.items()
    ]
    bases = sorted({base for name in facts.get("bases", {}).values() if (base := hub_id(name))})
    card = ModelCardData(
        language=config.get("trained_languages") or None,
        library_name=hub[0],
        pipeline_tag=hub[1],
        tags=TAGS,
        base_model=bases or None,
        license=one_licence(facts),
        datasets=[dataset["name"] for dataset in facts.get("datasets", [])] or None,
        model_name="multilingual CLIP" if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _about(source: Path | None, config: Mapping[str, Any], facts: Facts, alone: bool) -> Iterator[str]:
    """What the model is: towers, head, space, languages, and what it was made from; `alone`: of the encoder only."""
    if source:
        counts = {tower: f"; {count:,} parameters" for tower, count in parameters(source).items()}
        clip, encoder = (
            read_json(source / layout.CLIP / "open_clip_config.json"),
            read_json(source / layout.ENCODER / "config.json"),
        )
        vision = clip.get("model_cfg", {}).get("vision_cfg", {})
        if vision and not alone:
            kind = "ResNet" if isinstance(vision.get("layers"), list) else vision.get("timm_model_name", "ViT")
            size, width = vision.get("image_size", 224), clip["model_cfg"]["embed_dim"]
            yield f"Image tower: {kind}, {size} pixels, CLIP embeddings of width {width}{counts.get('image', '')}."
        if encoder:
            sizes = f"{encoder.get('num_hidden_layers')} layers, width {encoder.get('hidden_size')}"
            yield f"Text encoder: {encoder.get('model_type')}, {sizes}{counts.get('encoder', '')}."
        if "projector" in config and not alone:
            projector = config["projector"]
            yield (
                f"Projector: {projector['kind']}, pool {projector['pool']}{counts.get('projector', '')}; "
                f"clip_projector {config['clip_projector']}{counts.get('clip_projector', '')}; "
                f"text_cleaning {config.get('text_cleaning', 'none')}."
            )
        if "trained_languages" in config:
            languages = config["trained_languages"]
            yield f"Trained languages: {', '.join(languages)}." if languages else "Trained languages: not known."
    yield from _bases(facts)
    yield from _images(config, facts)
    yield from () if alone else cuts(config)
    yield from filter(None, [facts.get("same_images")])


def _bases(facts: Facts) -> Iterator[str]:
    """What the weights were before, and under which licence."""
    bases: dict[str, str] = facts.get("bases", {})
    licences: dict[str, str] = facts.get("licences", {})
    for name in dict.fromkeys(bases.values()):
        towers = ", ".join(tower for tower, base in bases.items() if base == name)
        if is_new(name):
            yield f"Weights of {towers}: trained from scratch."
        elif licences.get(name):
            yield f"Weights of {towers}: from {name}, licence {licences[name]}, which holds for this model, too."
        else:
            yield f"Weights of {towers}: from {name}; its licence was not declared, and holds for this model, too."
    licence = one_licence(facts)
    if licence:
        yield f"Licence: {licence}, as all that it was made from declares; what its data asks is said with the data."
    elif any(not is_new(name) for name in bases.values()):
        yield "Licence: none is declared here, since those of what it was made from are not all known and the same."


OTHER_PICTURES = {
    "exif": "pictures that EXIF turns",
    "alpha": "transparent pictures",
    "depth": "grey pictures of 16 bits",
}
"""Key of `pictures` -> the picture files for which it matters."""


def _images(config: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    """Whether vectors of pictures are those of the CLIP that the image tower came from; nothing if it was not checked.

    It says so only of the weights that were compared, of the picture files that both make RGB alike.
    """
    found: dict[str, Any] | None = facts.get("images")
    if not found:
        return
    name, ours, theirs = found["of"], config.get("pictures", {}), found["pictures"]
    if config.get("clip_projector") != "none":
        yield f"Image vectors: not those of {name}, since the CLIP projector maps them; embed pictures again."
    elif not found["same"]:
        yield f"Image vectors: not those of {name}, since the image tower was trained; embed pictures again."
    else:
        kinds = [kind for key, kind in OTHER_PICTURES.items() if ours.get(key) != theirs.get(key)]
        settings = ", ".join(f"{key}: {value}" for key, value in theirs.items())
        but = f" Not of {', '.join(kinds)}: train with `pictures: {{{settings}}}` for these." if kinds else ""
        yield (
            f"Image vectors: those of {name}, bit for bit on one machine, since the image tower's weights were "
            f"compared and are the same; an index that was made with it is searched as it is.{but}"
        )


def _scores(facts: Facts) -> Iterator[str]:
    """A table for each data set."""
    for evaluation in facts.get("evaluations", []):
        yield f"## Retrieval on {evaluation['dataset']}, {evaluation['split']}, {evaluation['n_images']} pictures"
        how = f"protocol `{evaluation['protocol']}` of `mclip-kit eval`"
        yield from ("", f"Percent, {evaluation.get('precision', 'fp32')}; ranks by {how}.")
        yield ""
        yield "| language | " + " | ".join(RECALLS) + " |"
        yield "| --- |" + " --- |" * len(RECALLS)
        for row in sorted(evaluation["rows"], key=lambda row: row["tower"] != "teacher"):
            label = f"{row['language']}, the CLIP's own text tower" if row["tower"] == "teacher" else row["language"]
            mark = " (not trained)" if row["trained"] is False else ""
            yield (
                f"| {label}{mark} | "
                + " | ".join(f"{100 * row['metrics'][name]:.1f}" for name in RECALLS.values())
                + " |"
            )
        yield ""


def _training(facts: Facts) -> Iterator[str]:
    """Recipe, stages, data with licences, leakage."""
    if facts.get("recipe"):
        yield from ("## Training", "", f"Recipe: {facts['recipe']}.", "")
    yield from (f"- {line}" for line in facts.get("stages", []))
    for dataset in facts.get("datasets", []):
        licences = "; ".join(f"{part['what']}: {part['licence']}, {part['by']}" for part in dataset["licences"])
        yield f"- Data: {dataset['name']}. {licences or 'Its licence was not declared.'}"
    if "leakage" in facts:
        leaks: Sequence[str] = facts["leakage"]
        yield from (f"- Leakage: {line}" for line in leaks)
        if not leaks:
            yield "- Leakage: no test set that was prepared beside the training data shares items with it."
    if facts.get("recipe"):
        yield ""
