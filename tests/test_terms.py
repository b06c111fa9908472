"""Joint sums of terms: never worse than greedy, best codes, best scales; and refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError


def squared(x: np.ndarray, terms: rq.MultiTerm) -> float:
    return float(np.sum((x - terms.decode(np.float64)) ** 2))


@pytest.mark.guarantee("Joint scales and codes are never worse than greedy ones", kind="sampled", clauses="M1")
@pytest.mark.parametrize(("bits", "terms"), [(2, 2), (2, 3), (3, 2), (3, 3), (4, 2)])
@given(seed=st.integers(0, 2**32), n=st.integers(1, 64))
def test_joint_is_never_worse_than_greedy(bits: int, terms: int, seed: int, n: int) -> None:
    x = np.random.default_rng(seed).standard_t(3, n)
    spec = rq.QuantSpec(bits)
    greedy, joint = (rq.encode_terms(x, spec=spec, terms=terms, method=m) for m in ("greedy", "joint"))
    # both errors are sums of n terms each within a few u of exact: gamma_(n+8) of the energy covers them
    assert squared(x, joint) <= squared(x, greedy) + (n + 8) * 2.0**-52 * float(np.sum(x * x))


@pytest.mark.guarantee("Joint codes are the nearest of all sums", kind="sampled", clauses="M1")
@given(seed=st.integers(0, 2**32))
def test_joint_codes_are_the_nearest_of_all_sums(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=20)
    joint = rq.encode_terms(x, spec=rq.QuantSpec(2, narrow=True), terms=2)
    greedy = rq.encode_terms(x, spec=rq.QuantSpec(2, narrow=True), terms=2, method="greedy")
    if squared(x, joint) == squared(x, greedy):
        return  # it started at a fixed point, whose codes may be greedy's
    sums = np.array([np.dot(q, joint.scales) for q in itertools.product((-1, 0, 1), repeat=2)])
    distance = np.abs(x[:, None] - sums).min(axis=1)
    assert np.all(np.abs(x - joint.decode(np.float64)) <= distance + 4 * 2.0**-52 * np.abs(sums).max())


def test_joint_finds_an_exact_two_term_tensor() -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(-1, 2, (2, 200))
    x = np.float32(1.0) * codes[0] + np.float32(0.25) * codes[1]
    joint = rq.encode_terms(x.astype(np.float32), spec=rq.QuantSpec(2, narrow=True), terms=2)
    assert np.array_equal(joint.decode(), x.astype(np.float32))


@pytest.mark.parametrize("granularity", [rq.PerTensor(), rq.PerChannel(0), rq.PerChannel(1), rq.PerGroup(1, 3)])
def test_every_granularity_equals_its_rows(granularity: rq.PerTensor) -> None:
    x = np.random.default_rng(3).normal(size=(4, 7, 2)).astype(np.float32)
    whole = rq.encode_terms(x, spec=rq.QuantSpec(3, granularity=granularity), terms=2)
    rows, decoded = granularity.rows(x), granularity.rows(whole.decode())
    used = granularity.rows(np.ones(x.shape)) > 0
    for row, value, mask in zip(rows, decoded, used, strict=True):
        alone = rq.encode_terms(row[mask], spec=rq.QuantSpec(3), terms=2)
        assert np.array_equal(alone.decode(), value[mask])


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"method": "best"}, "method='best'"),
        ({"terms": 0}, "terms=0"),
        ({"spec": rq.QuantSpec(3, rounding="floor")}, "rounding=floor"),
        ({"rest": rq.QuantSpec(3, granularity=rq.PerChannel(0))}, "granularity"),
    ],
)
def test_refusals(keywords: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.encode_terms(np.ones((2, 2)), **{"spec": rq.QuantSpec(3), "terms": 2, **keywords})  # type: ignore[arg-type]
