"""What this package exports comes back by its imports with the same embeddings; the commands and what they say."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.config.model import AS_SEEN
from mclip_kit.interop.clip_pictures import AS_TRANSFORMERS
from mclip_kit.interop.export import find
from mclip_kit.interop.imports.altclip import import_altclip
from mclip_kit.interop.imports.open_clip import import_open_clip
from mclip_kit.interop.imports.sentence_transformers import import_sentence_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from tests import tiny
from tests.interop.imports import published
from tests.interop.models import build

ALTCLIP = {"kind": "altclip", "pool": "cls", "hidden": 9}
HOW = {"transformers": AS_TRANSFORMERS, "open-clip": AS_SEEN, "sentence-transformers": AS_TRANSFORMERS}
BACK = {
    "transformers": import_altclip,
    "open-clip": import_open_clip,
    "sentence-transformers": import_sentence_transformers,
}


@pytest.mark.parametrize("name", BACK)
def test_an_export_comes_back(squares: Path, tmp_path: Path, name: str) -> None:
    if name == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    heads = [ALTCLIP] if name == "transformers" else [ALTCLIP, {"kind": "transformer", "pool": "mean"}]
    for number, projector in enumerate(heads):
        model = build(squares, projector, "linear", 24, tiny.TEACHER)
        model.clip[0].pictures = HOW[name]
        model.text_cleaning = "ftfy" if name == "open-clip" else "none"
        out, form = tmp_path / str(number), find(name)
        out.mkdir()
        form.write(model, out, form.options)
        again = BACK[name](out)  # type: ignore[operator]
        torch.testing.assert_close(
            again.encode_text(published.TEXTS), model.encode_text(published.TEXTS), atol=1e-6, rtol=0
        )
        images = published.pictures()
        torch.testing.assert_close(again.encode_image(images), model.encode_image(images), atol=1e-6, rtol=0)
        assert again.clip[0].pictures == model.clip[0].pictures
        assert again.text_cleaning == model.text_cleaning
        assert again.encoder.positions == model.encoder.positions


def test_the_commands(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model: MultilingualClip = build(squares, ALTCLIP, "none", 24, tiny.TEACHER)
    for name in BACK:
        Path(name).mkdir()
        find(name).write(model, Path(name), find(name).options)
    commands = {"altclip": "transformers", "open-clip": "open-clip", "sentence-transformers": "sentence-transformers"}
    for command, folder in commands.items():
        done = CliRunner().invoke(cli, ["import", command, folder, "--out", f"models/{command}"])
        assert done.exit_code == 0, done.output
        assert "texts: cut at" in done.output
        assert f"mclip-kit eval models/{command}" in done.output
        assert f"init_from: models/{command}" in done.output
        assert load(f"models/{command}").width == model.width
    done = CliRunner().invoke(cli, ["import", "altclip", "transformers", "--out", "models/altclip"])
    assert (done.exit_code, "exists already" in done.output) == (2, True)
    for words in ("altclip nowhere", "multilingual-clip transformers", "open-clip no-name --pretrained x",
                  "sentence-transformers transformers", "multilingual-clip nowhere"):  # fmt: skip
        done = CliRunner().invoke(cli, ["import", *words.split(), "--out", "models/none"])
        assert done.exit_code == 2, done.output
        assert len(done.output.strip().splitlines()) == 1
        assert not Path("models/none").exists()
        assert len(list(Path("models").iterdir())) == 3
