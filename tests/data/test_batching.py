"""Which rows come when: once an epoch, in sampled shares, by length, and the same again from the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.data import batching
from mclip_kit.data.batching import Plan, language_shares, pad

ROWS = 1000


def columns(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Languages in shares of about 70, 25 and 5 percent, and lengths of 3 to 60 tokens."""
    random = np.random.default_rng(seed)
    return random.choice(3, ROWS, p=[0.7, 0.25, 0.05]), random.integers(3, 61, ROWS)


def drawn(plan: Plan, epoch: int = 0) -> np.ndarray:
    return np.concatenate(plan.epoch(epoch))


@pytest.mark.parametrize("monolingual", [False, True])
def test_each_row_comes_at_most_once_an_epoch(monolingual):
    rows = drawn(Plan(*columns(), 32, monolingual=monolingual))
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(ROWS))


def test_only_what_fills_no_batch_is_left_out():
    assert len(drawn(Plan(*columns(), 32))) == ROWS - ROWS % 32
    assert sorted(drawn(Plan(*columns(), 50))) == list(range(ROWS))


def test_monolingual_batches_leave_out_less_than_a_batch_a_language():
    languages_N, lengths_N = columns()
    counts = np.bincount(languages_N[drawn(Plan(languages_N, lengths_N, 32, monolingual=True))])
    assert counts.tolist() == [count - count % 32 for count in np.bincount(languages_N)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("monolingual", [False, True])
def test_every_batch_is_full(temperature, monolingual):
    plan = Plan(*columns(), 24, temperature, monolingual)
    assert {len(batch) for epoch in range(3) for batch in plan.epoch(epoch)} == {24}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("monolingual", [False, True])
def test_every_epoch_has_as_many_batches(temperature, monolingual):
    plan = Plan(*columns(), 24, temperature, monolingual)
    assert len({len(plan.epoch(epoch)) for epoch in range(5)}) == 1


@pytest.mark.parametrize("window", [None, 1, 150, 10 * ROWS])
@pytest.mark.parametrize("monolingual", [False, True])
@pytest.mark.parametrize("sources", [{}, {"sources_N": np.repeat([0, 2], [130, ROWS - 130])}], ids=["one", "two"])
@pytest.mark.parametrize("temperature", [1.0, 2.7])
def test_batches_are_counted_without_drawing_an_epoch(temperature, sources, monolingual, window, monkeypatch):
    weights = {"weights": [1.0, 5.0, 2.0]} if sources else {}
    for size in (1, 23, 400, 2 * ROWS):
        plan = Plan(*columns(), size, temperature, monolingual, **sources, **weights, window=window)
        with monkeypatch.context() as closed:
            closed.setattr(Plan, "_draw", None)
            count = plan.per_epoch
        assert [len(plan.epoch(number)) for number in range(2)] == [count] * 2


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_epoch_is_a_function_of_seed_and_number(temperature):
    first = Plan(*columns(), 32, temperature, seed=5)
    again = Plan(*columns(), 32, temperature, seed=5)
    again.epoch(0)
    np.testing.assert_array_equal(first.epoch(3), again.epoch(3))


def test_epochs_and_seeds_differ():
    plan = Plan(*columns(), 32, seed=5)
    assert drawn(plan, 0).tolist() != drawn(plan, 1).tolist()
    assert drawn(plan).tolist() != drawn(Plan(*columns(), 32, seed=6)).tolist()


def test_what_is_left_out_differs_between_epochs():
    plan = Plan(*columns(), 300)
    assert set(drawn(plan, 0)) != set(drawn(plan, 1))


def test_monolingual_batches_hold_one_language():
    languages_N, lengths_N = columns()
    batches = Plan(languages_N, lengths_N, 16, monolingual=True).epoch(0)
    assert all(len(set(languages_N[batch])) == 1 for batch in batches)
    assert {languages_N[batch][0] for batch in batches} == {0, 1, 2}


def test_monolingual_batches_of_all_languages_are_mixed():
    languages_N, lengths_N = columns()
    order = [languages_N[batch[0]] for batch in Plan(languages_N, lengths_N, 16, monolingual=True).epoch(0)]
    assert order != sorted(order)


def padding(batches: list[np.ndarray], lengths_N: np.ndarray) -> int:
    return sum(int((lengths_N[batch].max() - lengths_N[batch]).sum()) for batch in batches)


def test_length_buckets_pad_less_than_random_batches():
    languages_N, lengths_N = columns()
    bucketed = Plan(languages_N, lengths_N, 20).epoch(0)
    random = Plan(languages_N, np.ones_like(lengths_N), 20).epoch(0)
    assert padding(bucketed, lengths_N) < padding(random, lengths_N) / 10


def test_batches_of_short_and_long_rows_are_mixed():
    languages_N, lengths_N = columns()
    means = [lengths_N[batch].mean() for batch in Plan(languages_N, lengths_N, 20).epoch(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 1000.0])
def test_shares_are_those_of_the_formula(temperature):
    counts = [700, 250, 50]
    powers = [(count / sum(counts)) ** (1 / temperature) for count in counts]
    expected = [power / sum(powers) for power in powers]
    np.testing.assert_allclose(language_shares(np.array(counts), temperature), expected)


def test_temperature_one_keeps_the_natural_shares_and_a_high_one_evens_them():
    counts = np.array([700, 250, 50])
    np.testing.assert_allclose(language_shares(counts, 1.0), counts / 1000)
    np.testing.assert_allclose(language_shares(counts, 1e6), 1 / 3, rtol=1e-4)


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_languages_are_drawn_in_their_shares(temperature):
    languages_N, lengths_N = columns()
    shares = language_shares(np.bincount(languages_N), temperature)
    counts = np.bincount(languages_N[drawn(Plan(languages_N, lengths_N, 10, temperature))])
    np.testing.assert_allclose(counts, ROWS * shares, atol=11)  # rounding, and the last batch


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_no_row_comes_again_before_all_others_of_its_language_came(temperature):
    languages_N, lengths_N = columns()
    times_N = np.bincount(drawn(Plan(languages_N, lengths_N, 1, temperature)), minlength=ROWS)
    for language in range(3):
        assert np.ptp(times_N[languages_N == language]) <= 1
    assert times_N[languages_N == 2].min() >= 2


def test_rows_are_padded_on_the_right_with_one():
    ids_BT, mask_BT = pad([np.array([0, 7, 2]), np.array([0, 7, 8, 9, 2], np.int32), np.array([0, 2])])
    assert ids_BT.tolist() == [[0, 7, 2, 1, 1], [0, 7, 8, 9, 2], [0, 2, 1, 1, 1]]
    assert mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert ids_BT.dtype == mask_BT.dtype == torch.int64


def test_rows_of_one_length_are_not_padded():
    ids_BT, mask_BT = pad([np.array([0, 5, 2]), np.array([0, 6, 2])])
    assert ids_BT.shape == (2, 3)
    assert mask_BT.all()


def test_corpora_are_drawn_in_their_shares():
    sources_N = np.repeat([0, 1], [900, 100])
    plan = Plan(np.zeros(1000, int), np.full(1000, 5), 10, sources_N=sources_N, weights=[1.0, 3.0])
    drawn = np.concatenate(plan.epoch(0))
    counts = np.bincount(sources_N[drawn])
    assert counts.tolist() == [250, 750]
    assert set(np.bincount(drawn, minlength=1000)[900:]) == {7, 8}
    assert np.bincount(drawn, minlength=1000)[:900].max() == 1


def test_shares_of_corpora_and_of_languages_work_together():
    languages_N, sources_N = np.repeat([0, 1, 1], [300, 100, 600]), np.repeat([0, 1], [400, 600])
    plan = Plan(languages_N, np.full(1000, 5), 10, 1e9, sources_N=sources_N, weights=[1.0, 1.0])
    drawn = np.concatenate(plan.epoch(0))
    counts = [int(((sources_N == s) & (languages_N == n))[drawn].sum()) for s, n in ((0, 0), (0, 1), (1, 1))]
    assert counts == [250, 250, 500]


def by_tokens(budget: int = 600, share: int = 1, **how) -> Plan:
    return Plan(*columns(), share, monolingual=True, tokens=budget, **how)


@pytest.mark.parametrize("share", [1, 4])
def test_batches_by_tokens_keep_to_the_budget_and_divide_among_processes(share):
    plan = by_tokens(share=share)
    lengths_N = plan.lengths_N
    batches = plan.epoch(0)
    assert all(len(batch) and len(batch) % share == 0 for batch in batches)
    assert all(len(batch) * lengths_N[batch].max() <= 600 for batch in batches)
    assert all(len(set(plan.languages_N[batch])) == 1 for batch in batches)
    full = [len(batch) * lengths_N[batch].max() for batch in batches]
    assert np.median(full) > 450  # the budget is used


def test_epochs_by_tokens_have_as_many_batches_and_differ():
    plan = by_tokens(temperature=3.0)
    assert {len(plan.epoch(number)) for number in range(4)} == {plan.per_epoch}
    assert plan.per_epoch == plan.lengths_N.sum() // 600
    first, again, other = plan.epoch(0), by_tokens(temperature=3.0).epoch(0), plan.epoch(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_budget_beyond_the_corpus_makes_one_batch_a_language():
    plan = by_tokens(budget=10**6)
    assert plan.per_epoch == 1
    (batch,) = plan.epoch(0)
    assert len(batch) == (plan.languages_N == plan.languages_N[batch[0]]).sum()


@pytest.mark.parametrize("how", [{}, {"tokens": 900, "monolingual": True}, {"temperature": 3.0}], ids=str)
def test_an_epoch_that_is_kept_is_the_same_and_drawn_once(tmp_path: Path, monkeypatch, how):
    monkeypatch.setattr(batching, "SHARED", ROWS)
    size = 1 if "tokens" in how else 24
    alone, plan, other = (Plan(*columns(), size, kept=kept, **how) for kept in (None, tmp_path, tmp_path))
    for number in range(3):
        expected = [batch.tolist() for batch in alone.epoch(number)]
        assert [batch.tolist() for batch in plan.epoch(number)] == expected
        monkeypatch.setattr(Plan, "_draw", None)  # from here on nothing can be drawn
        assert [batch.tolist() for batch in other.epoch(number)] == expected
        assert len(other.epoch(number)) == plan.per_epoch
        monkeypatch.undo()
        monkeypatch.setattr(batching, "SHARED", ROWS)
    kept = sorted(path.name.rpartition("-")[2] for path in tmp_path.glob("epoch-*"))
    assert kept == ["1", "2"]  # those before the last two are removed
    (path,) = tmp_path.glob("epoch-*-2/rows.bin")
    path.write_bytes(path.read_bytes()[::-1])
    assert [batch.tolist() for batch in other.epoch(2)] == expected  # damaged: drawn again
    assert plan._identity() != Plan(*columns(), size, seed=2, **how)._identity()


WINDOWED = [
    {},
    {"monolingual": True},
    {"temperature": 3.0},
    {"sources_N": np.repeat([0, 1], [900, 100]), "weights": [1.0, 3.0]},
]


@pytest.mark.parametrize("monolingual", [False, True])
def test_with_a_window_each_row_comes_once_an_epoch_but_those_that_fill_no_batch(monolingual):
    languages_N, lengths_N = columns()
    for epoch in range(3):
        rows = drawn(Plan(languages_N, lengths_N, 16, monolingual=monolingual, window=100), epoch)
        assert len(set(rows)) == len(rows)
        left = np.bincount(languages_N) % 16 if monolingual else [ROWS % 16]
        assert len(rows) == ROWS - sum(left)


@pytest.mark.parametrize("options", WINDOWED)
def test_windows_keep_full_batches_shares_and_the_number_of_batches(options):
    languages_N, lengths_N = columns()
    plans = [Plan(languages_N, lengths_N, 24, **options, window=window) for window in (None, 150)]
    for epoch in range(3):
        whole, windows = (plan.epoch(epoch) for plan in plans)
        assert {len(batch) for batch in windows} == {24}
        assert len(windows) == len(whole) == plans[1].per_epoch
        shares = [np.bincount(languages_N[np.concatenate(batches)], minlength=3) for batches in (whole, windows)]
        np.testing.assert_allclose(*shares, atol=25)  # what fills no batch
    if options.get("monolingual"):
        assert all(len(set(languages_N[batch])) == 1 for batch in windows)


@pytest.mark.parametrize("options", WINDOWED)
def test_every_window_has_the_languages_in_the_shares_of_the_epoch(options):
    languages_N, lengths_N = np.sort(columns()[0]), columns()[1]  # language after language, as in parallel text
    plan = Plan(languages_N, lengths_N, 10, **options, window=200)
    whole = np.bincount(languages_N[drawn(plan)], minlength=3) / len(drawn(plan))
    for window in plan.windows(0):
        shares = np.bincount(languages_N[np.concatenate(window)], minlength=3) / len(np.concatenate(window))
        np.testing.assert_allclose(shares, whole, atol=0.1)


def test_adjacent_rows_are_used_up_within_two_windows():
    """So their features are read from storage once, though an epoch has rows from all over the data."""
    plan, window = Plan(np.zeros(10_000, int), columns()[1].repeat(10), 20, window=1000), 1000 // 20
    for epoch in range(2):
        batch_of_N = np.empty(10_000, int)
        for number, batch in enumerate(plan.epoch(epoch)):
            batch_of_N[batch] = number
        blocks = batch_of_N.reshape(-1, 1000 // 4)
        assert np.ptp(blocks, 1).max() <= 2 * window
        firsts = blocks.min(1) // window
        assert np.bincount(firsts).tolist() == [4] * 10  # blocks of a window
        assert np.corrcoef(firsts, np.arange(len(firsts)))[0, 1] < 0.5  # from all over the data
    whole = np.concatenate(Plan(np.zeros(10_000, int), np.ones(10_000, int), 20).epoch(0))
    assert np.ptp(np.argsort(whole).reshape(-1, 250), 1).min() > 9000  # without a window, over the whole epoch


def test_captions_of_a_picture_and_translations_of_a_text_are_in_one_window():
    count = 1200
    orders = {"captions": np.arange(3 * count) % 3, "bitext": np.repeat(np.arange(3), count)}
    for name, languages_N in orders.items():
        inputs_N = np.arange(3 * count) // 3 if name == "captions" else np.tile(np.arange(count), 3)
        plan = Plan(languages_N, np.ones(3 * count, int), 1, window=300)
        windows = [{*inputs_N[np.concatenate(window)]} for window in plan.windows(0)]
        assert [len(window) for window in windows] == [100] * 12, name


def test_a_window_mixes_its_blocks():
    plan = Plan(np.zeros(1000, int), np.ones(1000, int), 10, window=400)
    first = np.concatenate(plan.windows(0)[0])
    middle = [len({*(batch // 83)}) for batch in plan.windows(0)[0]]  # blocks are 83 or 84 rows
    assert np.mean(middle) > 3
    assert first.tolist() != sorted(first)


def test_windows_are_a_function_of_seed_and_epoch_and_work_with_a_token_limit():
    languages_N, lengths_N = columns()
    for options in ({}, {"tokens": 400}, {"tokens": 400, "monolingual": True, "temperature": 2.0}):
        plan = Plan(languages_N, lengths_N, 2, seed=5, window=100, **options)
        again = Plan(languages_N, lengths_N, 2, seed=5, window=100, **options)
        np.testing.assert_array_equal(drawn(plan, 3), drawn(again, 3))
        assert drawn(plan, 0).tolist() != drawn(plan, 1).tolist()
        assert {len(plan.epoch(epoch)) for epoch in range(3)} == {plan.per_epoch}
        if options:
            assert all(len(batch) * lengths_N[batch].max() <= 400 for batch in plan.epoch(0))


def test_a_window_of_all_rows_is_one_window():
    plan = Plan(*columns(), 10, window=ROWS)
    assert len(plan.windows(0)) == 1
    assert sorted(drawn(plan)) == list(range(ROWS))
