"""mclip-kit eval"""

import json
from pathlib import Path

import click

from mclip_kit.cli.common import FOLDER, quiet
from mclip_kit.errors import DataError


@click.command("eval")
@click.argument("models", nargs=-1, required=True, type=FOLDER)
@click.option("--data", type=FOLDER, default=Path("data/emoji"), show_default=True, help="A prepared folder.")
@click.option("--split", default="test", show_default=True)
@click.option("--langs", help="Languages, with commas between.  [default: all]")
@click.option("--out", type=FOLDER, help="Where results.json and retrieval.png go.  [default: eval/ beside the model]")
def evaluate(models: tuple[Path, ...], data: Path, split: str, langs: str | None, out: Path | None) -> None:
    """Score model folders by image-text retrieval in every language, and draw what the last one finds."""
    quiet()
    from mclip_kit.data import leakage
    from mclip_kit.data.captions import read_captions
    from mclip_kit.evaluate import picture, report
    from mclip_kit.evaluate.retrieval import evaluate
    from mclip_kit.files import write_json
    from mclip_kit.towers.model import load

    captions = read_captions(data)
    credit = _credits(data)
    languages = [language.strip() for language in langs.split(",")] if langs else "all"
    folder = out or models[-1].resolve().parent / "eval"
    written, scored, leaks = {}, [], []
    for name in models:
        model = load(name)
        results = evaluate(model, captions, split, languages)
        scored.append((f"{name} ({model.made_from})", results, model.trained_languages))
        found = leakage.read_json(name.resolve().parent / leakage.LEAKAGE)
        leaks += [(name, leak) for leak in leakage.concerning(found, data, split)]
        shared = leakage.as_json(leak for of, leak in leaks if of == name)
        written[str(name)] = report.as_json(results, model.trained_languages, captions, split) | {"leakage": shared}
    if len(scored) == 1:
        title, results, trained = scored[0]
        click.echo("\n" + report.table(results, trained, f"{title}, {split} of {data}"))
    else:
        click.echo("\n" + report.comparison(scored))
    for name, leak in leaks:
        click.echo(f"leak, {name}: {leak.line()}")
    write_json(folder / "results.json", written)
    shown = [language for language in results if language != report.TEACHER]
    rows = report.picture_rows(model, captions, split, shown)
    title = f"What one model finds in {len(shown)} languages"
    picture.draw(rows, folder / "retrieval.png", title, credit)
    click.echo(f"\nwritten: {folder / 'results.json'}, {folder / 'retrieval.png'}")


def _credits(data: Path) -> str:
    try:
        licences = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["licences"]
        names = "; ".join(f"{part['what']}: {part['by']}, {part['licence']}" for part in licences)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{data / 'manifest.json'}: damaged; prepare the corpus again") from None
    return f"Queries are drawn at random. {names}"
