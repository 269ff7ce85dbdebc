"""The lines of Python that a card has run as they are, and give the model's embeddings.

docs/try_exports.py runs them in environments that have the other library alone; ONNX's lines are in test_onnx.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_kit.interop.card import Export, render
from mclip_kit.interop.export import find
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests import tiny
from tests.interop.models import build

TEXTS = {"open-clip": ["ein Hund"], "sentence-transformers": ["ein Hund", "un chien"]}
"""Format -> the texts of its lines."""


def used(name: str, model: MultilingualClip, folder: Path, **options: Any) -> dict[str, Any]:
    """Variables after the lines of an exported folder, with photo.jpg in the current folder."""
    form = find(name)
    if form.missing:
        pytest.skip(f"the extra `{form.extra}` is not installed")
    chosen = {**form.options, **options}
    folder.mkdir()
    form.write(model, folder, chosen)
    Image.linear_gradient("L").resize((33, 22)).convert("RGB").save("photo.jpg", quality=95)
    card = render(None, {}, Export(name, form.library, form.install, form.lines(model, chosen), [], {}, form.hub))
    assert f"Without mclip-kit: `python -m pip install {form.install}`" in card
    lines = card.split("```python\n")[1].split("```")[0]
    variables: dict[str, Any] = {}
    exec(lines.replace("THIS_FOLDER", str(folder)), variables)
    return variables


@pytest.fixture
def model(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MultilingualClip:
    """A model that every format takes; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return build(squares, {"kind": "altclip", "pool": "cls"}, "linear", 24, tiny.TEACHER)


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("open-clip", {}),
        ("open-clip", {"tower": "teacher"}),
        ("sentence-transformers", {}),
        ("sentence-transformers", {"text_only": True}),
    ],
)
def test_the_lines_give_the_models_embeddings(
    model: MultilingualClip, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    found = used(name, model, tmp_path / "out", **options)
    found = {key.removesuffix("_ND"): value for key, value in found.items()}
    encode = model.encode_teacher_text if options.get("tower") == "teacher" else model.encode_text
    for kind, wanted in (("text", encode(TEXTS[name])), ("image", model.encode_image("photo.jpg"))):
        if kind in found:
            embeddings = found[kind].detach() if name == "open-clip" else found[kind]
            close(embeddings, wanted if np.ndim(embeddings) == 2 else wanted[0])
    assert ("image" in found) == (not options.get("text_only"))


@pytest.mark.parametrize("kind", ["altclip", "linear"])
def test_the_lines_of_transformers_print_the_models_shares(
    squares: Path, model: MultilingualClip, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(squares, {"kind": kind, "pool": "cls"}, "linear", 24, tiny.TEACHER)
    found = used("transformers", model, tmp_path / "out")
    cosine_GT = model.encode_image("photo.jpg") @ model.encode_text(found["texts"]).T
    wanted = (model.teacher_scale.exp() * cosine_GT).softmax(1)[0]
    printed = capsys.readouterr().out
    close(eval(printed[printed.index("[[") + 1 : printed.index("]]") + 1]), wanted.round(decimals=4))
