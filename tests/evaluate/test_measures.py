"""The estimates against cases worked out by hand, textbook formulas and the bootstrap."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.evaluate.measures import accuracy, nll_per_token, paired_rise, ratio

numbers = st.floats(-100, 100)
weights = st.integers(1, 500)
weighted = st.lists(st.tuples(numbers, weights), min_size=2, max_size=40)


def samples(nlls: list[float], tokens: list[int]) -> list[dict[str, Any]]:
    return [
        {"doc_id": place, "nll": nll, "tokens": count, "doc_hash": str(place)}
        for place, (nll, count) in enumerate(zip(nlls, tokens, strict=True))
    ]


def test_ratio_by_hand() -> None:
    # R = 10/5 = 2; residuals 4-2*1 = 2 and 6-2*4 = -2; variance 2/1 * 8 / 25
    estimate, stderr = ratio([4.0, 6.0], [1, 4])
    assert estimate == 2.0
    assert stderr == pytest.approx(math.sqrt(2 * 8) / 5)


def test_equal_weights_give_the_mean_and_its_usual_error() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    estimate, stderr = ratio(values, [1] * 4)
    assert estimate == 4.0
    assert stderr == pytest.approx(math.sqrt(sum((value - 4) ** 2 for value in values) / 3 / 4))


def test_ratio_error_agrees_with_the_bootstrap() -> None:
    generator = random.Random(0)
    tokens = [generator.randint(3, 90) for _ in range(200)]
    nlls = [count * generator.gauss(3, 0.6) for count in tokens]
    means = []
    for _ in range(1500):
        picked = generator.choices(range(200), k=200)
        means.append(sum(nlls[i] for i in picked) / sum(tokens[i] for i in picked))
    centre = sum(means) / len(means)
    bootstrap = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (len(means) - 1))
    assert ratio(nlls, tokens)[1] == pytest.approx(bootstrap, rel=0.1)


@given(weighted, st.floats(0.01, 10))
def test_ratio_scales(pairs: list[tuple[float, int]], factor: float) -> None:
    values, sizes = [value for value, _ in pairs], [size for _, size in pairs]
    estimate, stderr = ratio(values, sizes)
    scaled = ratio([value * factor for value in values], sizes)
    assert scaled == pytest.approx((estimate * factor, stderr * factor), rel=1e-6, abs=1e-9)
    assert min(v / w for v, w in pairs) - 1e-9 <= estimate <= max(v / w for v, w in pairs) + 1e-9
    assert ratio(values[::-1], sizes[::-1]) == pytest.approx((estimate, stderr), rel=1e-9, abs=1e-9)


def test_one_sample_has_no_error() -> None:
    estimate, stderr = ratio([3.0], [2])
    assert estimate == 1.5
    assert math.isnan(stderr)


@pytest.mark.parametrize(("values", "sizes"), [([], []), ([1.0], [1, 2]), ([1.0], [0]), ([1.0], [math.nan])])
def test_ratio_refuses(values: list[float], sizes: list[float]) -> None:
    with pytest.raises(UntaxError):
        ratio(values, sizes)


def test_accuracy_by_hand() -> None:
    estimate, stderr = accuracy([1, 1, 1, 0])
    assert estimate == 0.75
    assert stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


def test_accuracy_between_groups() -> None:
    # two prompts, each answered one way: only two independent facts
    estimate, stderr = accuracy([1, 1, 1, 0, 0, 0], groups=["a", "a", "a", "b", "b", "b"])
    assert estimate == 0.5
    assert stderr == pytest.approx(math.sqrt(2 * (1.5**2 + 1.5**2)) / 6)
    assert accuracy([1, 1, 0], groups=["a", "b", "c"]) == accuracy([1, 1, 0])


def test_paired_rise_by_hand() -> None:
    base = samples([10.0, 20.0], [10, 10])
    arm = samples([11.0, 23.0], [10, 10])
    # rises 1 and 3 over 20 tokens: 0.2; residuals -1 and 1
    assert paired_rise(arm, base) == pytest.approx((0.2, math.sqrt(2 * 2) / 20))


@given(weighted)
def test_paired_rise_over_itself_is_nothing(pairs: list[tuple[float, int]]) -> None:
    one = samples([value for value, _ in pairs], [size for _, size in pairs])
    assert paired_rise(one, one[::-1]) == (0.0, 0.0)


@given(weighted, st.lists(numbers, min_size=40, max_size=40))
def test_paired_rise_is_the_difference_of_the_two(pairs: list[tuple[float, int]], others: list[float]) -> None:
    sizes = [size for _, size in pairs]
    arm, base = samples([value for value, _ in pairs], sizes), samples(others[: len(pairs)], sizes)
    difference = nll_per_token(arm)[0] - nll_per_token(base)[0]
    assert paired_rise(arm, base)[0] == pytest.approx(difference, abs=1e-9)


def test_paired_rise_refuses_other_items() -> None:
    base = samples([10.0, 20.0, 5.0], [10, 10, 10])
    changed = [{**base[0], "doc_hash": "another"}, *base[1:]]
    longer = [{**base[0], "tokens": 11}, *base[1:]]
    for arm in (base[:2], [base[0], base[0], base[1]], changed, longer, []):
        with pytest.raises(UntaxError, match="cannot be compared"):
            paired_rise(arm, base)
