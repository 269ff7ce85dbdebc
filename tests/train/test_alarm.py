"""Plain words when a run goes wrong."""

from mclip_kit.train.alarm import CollapseMonitor

FINE = {"cosine": 0.3, "matching": 0.8, "grad_norm": 1.0, "skipped": 0.0}


def said(*steps: dict[str, float], start: int = 30) -> list[str]:
    alarm = CollapseMonitor(100)
    return [line for number, values in enumerate(steps, start) for line in alarm.check_step(number, FINE | values)]


def test_a_healthy_run_is_quiet():
    assert said({}, {"grad_norm": 3.0}, {"cosine": 0.99}, {"matching": 0.01}) == []


def test_a_collapse_is_said_once():
    (line,) = said({}, *[{"cosine": 0.98, "matching": 0.01}] * 3)
    assert "mean cosine 0.98" in line
    assert "1% find their own" in line


def test_new_towers_may_be_alike_at_first():
    assert said({"cosine": 0.99, "matching": 0.0}, start=1) == []


def test_a_skipped_step_and_a_spike_are_said():
    skipped, spike = said({"skipped": 1.0, "grad_norm": float("nan")}, {}, {"grad_norm": 50.0})
    assert "skipped" in skipped
    assert "gradient norm 50, where 1 is usual" in spike
