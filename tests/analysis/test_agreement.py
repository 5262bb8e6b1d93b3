"""Planted answers: equal orders, opposite ones, random ones, and masks."""

import numpy as np
import pytest
from scipy import stats

from headwise.analysis.agreement import agreement, best_of, correlations, jaccard, jaccard_by_chance, shared, spearman
from headwise.errors import ConfigError
from made_cases import each

TRUTH = np.random.default_rng(0).normal(size=144)


@each("score, expected", [(TRUTH, 1.0), (TRUTH**3, 1.0), (-TRUTH, -1.0)])
def test_an_order_agrees_with_itself_and_not_with_its_opposite(score, expected):
    found = agreement(score, TRUTH, k=14, draws=50, seed=0)
    assert found.spearman == pytest.approx(expected)
    assert found.top == (1.0 if expected > 0 else 0.0)
    assert not found.is_chance
    assert found.n == 144


def test_a_random_score_falls_into_its_band():
    inside = 0
    for seed in range(200):
        score = np.random.default_rng(5000 + seed).normal(size=144)
        found = agreement(score, TRUTH, k=14, draws=200, seed=seed)
        inside += found.is_chance
        assert -0.25 < found.low < -0.1 and 0.1 < found.high < 0.25  # 1.96 / sqrt(143) = 0.164
        assert found.top_low <= 14 / 144 <= found.top_high
    assert 180 <= inside < 200  # 95 % of 200 are 190, give or take 3


def test_a_score_that_does_not_vary_says_nothing():
    for score, truth in ((np.ones(20), TRUTH[:20]), (TRUTH[:20], np.ones(20))):
        found = agreement(score, truth, k=3, draws=10, seed=0)
        assert np.isnan(found.spearman) and np.isnan(found.top)
        assert found.is_chance is None


def test_the_largest():
    assert shared([1, 5, 3, 4], [0, 9, 1, 8], 2) == 1.0
    assert shared([1, 5, 3, 4], [9, 0, 8, 1], 2) == 0.0
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)


def test_equal_values_share_the_last_places():
    assert shared([0, 0, 0, 9], [9, 0, 0, 0], 2) == pytest.approx(2 * (1 / 3) / 2 + 2 * (1 / 9) / 2)
    random = np.random.default_rng(0)
    truth, few = random.normal(size=60), random.integers(0, 2, size=60)
    drawn = [shared(few + 1e-6 * random.normal(size=60), truth, 6) for _ in range(4000)]
    assert shared(few, truth, 6) == pytest.approx(np.mean(drawn), abs=0.01)


def test_the_best_of_several_random_orders():
    random = np.random.default_rng(0)
    best = [max(spearman(random.permutation(60), np.arange(60)) for _ in range(6)) for _ in range(400)]
    assert np.mean(np.array(best) < best_of(6, 60)) == pytest.approx(0.975, abs=0.02)


def test_masks_and_their_null():
    mask = {"q": np.array([[0, 0, 1, 1], [1, 0, 0, 1]])}
    other = {"q": 1 - mask["q"]}
    assert jaccard(mask, mask) == 1.0 and jaccard(mask, other) == 0.0
    assert np.isnan(jaccard({"q": np.ones((2, 4))}, {"q": np.ones((2, 4))}))
    layer = {"q": np.array([[0, 0, 1, 1]])}
    mean, low, high = jaccard_by_chance(layer, layer, False, 4000, 0)
    # of C(4, 2) = 6 choices 1 shares none, 4 share one of three, 1 shares both
    assert mean == pytest.approx((4 * (1 / 3) + 1) / 6, abs=0.02)
    assert (low, high) == (0.0, 1.0)


def test_one_mask_for_all_layers_varies_more_than_one_for_each():
    alike = {"q": np.tile([0, 0, 0, 1, 1, 1], (12, 1))}
    apart = {"q": np.stack([np.roll([0, 0, 0, 1, 1, 1], layer) for layer in range(12)])}
    (_, low, high), (_, near, far) = (
        jaccard_by_chance(masks, masks, masks is alike, 500, 0) for masks in (alike, apart)
    )
    assert high - low > 2 * (far - near)


@each("n", [3, 4, 7, 8, 12])
def test_the_best_of_few_things_is_bounded_and_true(n):
    random = np.random.default_rng(0)
    for scores in (1, 6):
        bound = best_of(scores, n)
        orders = random.permuted(np.tile(np.arange(float(n)), (4000 * scores, 1)), axis=1)
        best = correlations(orders, np.arange(n)).reshape(4000, scores).max(axis=1)
        assert bound <= 1.0 and (best <= bound + 1e-9).mean() >= 0.96
    assert (best_of(6, n) == 1.0) == (n <= 5), "of so few even the right order is one that chance gives"


def test_every_correlation_is_the_one_of_scipy():
    random = np.random.default_rng(1)
    one, other = random.integers(0, 5, size=(2, 30, 12)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert correlations(one, other) == pytest.approx(expected)
    assert [spearman(a, b) for a, b in zip(one, other, strict=True)] == pytest.approx(expected)
    noise = random.permuted(np.tile(np.arange(12.0), (9, 1)), axis=1)
    assert correlations(noise, one[0]) == pytest.approx([stats.spearmanr(row, one[0]).statistic for row in noise])
    assert np.isnan(correlations(np.ones(4), np.arange(4)))


@each("score, k", [([1.0, 2.0], 1), ([1.0, 2.0, 3.0, 4.0], 2), ([1.0, 2.0, 3.0], 4)])
def test_what_cannot_be_compared(score, k):
    with pytest.raises(ConfigError):
        agreement(score, [1.0, 2.0, 3.0], k, draws=2, seed=0)
