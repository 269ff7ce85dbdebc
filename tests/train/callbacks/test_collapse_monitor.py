"""Warnings about a step."""

from mclip_kit.train.callbacks.collapse_monitor import Warnings

HEALTHY = {"cosine": 0.3, "matching": 0.8, "grad_norm": 1.0, "skipped": 0.0}


def warnings_of(*steps: dict[str, float], start: int = 60) -> list[str]:
    """The warnings of consecutive steps, each given by its differences from a healthy one."""
    warnings = Warnings(100, warmup=5)
    return [
        line for number, values in enumerate(steps, start) for line in warnings.check_step(number, HEALTHY | values)
    ]


def test_a_healthy_run_has_no_warnings() -> None:
    assert warnings_of({}, {"grad_norm": 3.0}, {"cosine": 0.99}, {"matching": 0.01}) == []


def test_a_collapse_is_reported_once() -> None:
    (line,) = warnings_of({}, *[{"cosine": 0.98, "matching": 0.01}] * 3)
    assert "mean cosine 0.98" in line
    assert "1% match their own" in line


def test_new_towers_may_give_all_texts_the_same_embedding_at_first() -> None:
    assert warnings_of({"cosine": 0.99, "matching": 0.0}, start=1) == []
    assert warnings_of({"cosine": 0.99, "matching": 0.0}, start=54) == []  # of the warm-up, and 50 steps
    assert warnings_of({"cosine": 0.99, "matching": 0.0}, start=55) != []


def test_embeddings_that_come_apart_again_are_reported() -> None:
    collapsed = {"cosine": 0.98, "matching": 0.01}
    _, apart = warnings_of(collapsed, collapsed, {"cosine": 0.9, "matching": 0.07}, {"matching": 0.3}, collapsed, {})
    assert apart == "the embeddings are apart again: 30% match their own"


def test_a_skipped_step_and_a_large_gradient_are_reported() -> None:
    skipped, spike = warnings_of({"skipped": 1.0, "grad_norm": float("nan")}, {}, {"grad_norm": 50.0})
    assert "skipped" in skipped
    assert "gradient norm 50, usually 1" in spike
