"""A step that does not end is said, once; then that it has ended."""

import threading
import weakref
from pathlib import Path

import pytest

from mclip_kit.train import callbacks
from mclip_kit.train.callbacks import Callback, Progress, health
from mclip_kit.train.run import Run
from tests.train.runs import only_stage, recipe_of


def test_a_step_that_does_not_end_is_said(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    told = threading.Event()

    class Stall(Callback):
        """Stops at step 9 until somebody says so."""

        at: Progress

        def after_step(self) -> None:
            if self.at.step == 9:
                assert told.wait(120)

    monkeypatch.setattr(health, "LEAST", 0.0)
    monkeypatch.setattr(health, "EVERY", 0.01)
    monkeypatch.setattr("mclip_kit.train.run.CALLBACKS", [Stall, *callbacks.CALLBACKS])
    run = Run(recipe_of(squares, tmp_path, "evaluation=null", **only_stage(squares, 2)), tmp_path / "run")

    def log(line: str) -> None:
        lines.append(line)
        if "step 8: no step has ended" in line or "step 9: no step has ended" in line:
            told.set()

    monkeypatch.setattr(run.cache, "log", log)
    before = threading.active_count()
    run.go()
    assert told.is_set()
    assert any("it went on after" in line for line in lines)
    assert threading.active_count() <= before + 1  # the one that ends at its next look


def test_a_stage_that_fails_is_not_watched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "EVERY", 0.01)
    callback = health.Health.__new__(health.Health)
    looked = threading.Event()
    callback.look = looked.set  # type: ignore[method-assign]
    thread = threading.Thread(target=health._watch, args=(weakref.ref(callback), threading.Event()))
    thread.start()
    assert looked.wait(60)
    del callback
    thread.join(60)
    assert not thread.is_alive()


def test_an_error_ends_the_watch_at_once(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[health.Health] = []

    class Fails(Callback):
        """Fails at step 3."""

        at: Progress

        def after_step(self) -> None:
            watched.extend(callback for callback in self.at.callbacks if isinstance(callback, health.Health))
            if self.at.step == 3:
                raise KeyError("step 3")

    monkeypatch.setattr("mclip_kit.train.run.CALLBACKS", [Fails, *callbacks.CALLBACKS])
    run = Run(recipe_of(squares, tmp_path, "evaluation=null", **only_stage(squares, 2)), tmp_path / "run")
    with pytest.raises(KeyError):
        run.go()
    assert watched
    assert watched[0]._ended.is_set()
