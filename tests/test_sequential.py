"""Sequential error correction: each form against what defines it, and all graded by the rounding oracle."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.ops_linear import patches
from refquant.ptq import sequential as sequential_module
from refquant.ptq.activations import with_least_error
from refquant.ptq.observe import output_errors
from refquant.ptq.sequential import (
    FORMS,
    LayerMoments,
    corrected_target,
    layer_moments,
    row_errors,
    sequential,
    sequential_layer,
)
from refquant.ptq.task import make_task, weight_spec
from refquant.quant.multiterm import MultiTerm, sound, with_counts
from refquant.solve.rounding_oracle import ROUNDINGS, best_rounding, rounding_error
from refquant.solve.terms import encode_each, encode_terms

Array = NDArray[np.float64]
DATA = rq.load_data("fashion-mnist")
ORDER = np.arange


def problem(seed: int, d: int, samples: int = 40, noise: float = 0.1) -> tuple[Array, Array, Array]:
    """A row of weights, correlated inputs X, and X^ = X with an error."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(samples, d)) @ rng.normal(size=(d, d))
    return rng.normal(size=d), X, X + noise * rng.normal(size=X.shape)


def moments(X: Array, X_hat: Array) -> LayerMoments:
    gemm = Node("y", "Gemm", ("x",), {"in_features": X.shape[1], "out_features": 1}, {"weight": "w"})
    return layer_moments(gemm, X, X_hat)


def one(d: int, alpha: float, spec: rq.QuantSpec) -> MultiTerm:
    return MultiTerm(np.zeros((1, 1, d), np.int64), np.full((1, 1), alpha), (spec,), np.ones(1, np.int64))


SPEC = rq.QuantSpec(3, granularity=rq.PerChannel(0))


@pytest.mark.guarantee(
    "Sequential error correction: each code of GPTQ, GPFQ and Qronos is the best given what its definition fixes",
    kind="sampled",
)
@pytest.mark.parametrize("form", ["gptq", "gpfq", "qronos"])
def test_each_code_minimizes_what_defines_it(form: str) -> None:
    """By least squares on the samples themselves, not on moments: an independent way to every code."""
    d, alpha = 7, 0.5
    codes = np.arange(SPEC.qmin, SPEC.qmax + 1)
    for seed in range(20):
        w, X, X_hat = problem(seed, d)
        source = X_hat if form == "gptq" else X
        found = sequential_layer(w[None], one(d, alpha, SPEC), moments(source, X_hat), form, ORDER(d)).decode(float)[0]
        target = source @ w
        for t in range(d):
            left = target - X_hat[:, :t] @ found[:t]
            if form == "gpfq":
                left = left - source[:, t + 1 :] @ w[t + 1 :]  # what the inputs so far should have made
                errors = [np.sum((left - alpha * q * X_hat[:, t]) ** 2) for q in codes]
            elif form == "qronos" and t == 0:
                left = left - X_hat[:, 1:] @ w[1:]
                errors = [np.sum((left - alpha * q * X_hat[:, 0]) ** 2) for q in codes]
            else:  # the free weights at their optimum for each code
                tried = [left - alpha * q * X_hat[:, t] for q in codes]
                free = X_hat[:, t + 1 :]
                errors = [np.sum((y - free @ np.linalg.lstsq(free, y, rcond=None)[0]) ** 2) for y in tried]
            assert found[t] == alpha * codes[int(np.argmin(errors))]


def test_gptq_is_the_oracles_sequential_rounding() -> None:
    for seed in range(10):
        w, X, _ = problem(seed, 9)
        last_first = ORDER(9)[::-1]
        found = sequential_layer(w[None], one(9, 0.4, SPEC), moments(X, X), "gptq", last_first)
        R = np.asarray(np.linalg.qr(X, mode="r"))
        assert found.codes[0, 0].tolist() == ROUNDINGS["sequential"](R, w / 0.4, SPEC).tolist()


def test_forms_agree_where_inputs_are_the_same_and_orthogonal() -> None:
    """Then every form is rounding to nearest."""
    w = np.random.default_rng(5).normal(size=6)
    X = np.eye(6)
    for form in ("gptq", "gpfq", "qronos"):
        found = sequential_layer(w[None], one(6, 0.3, SPEC), moments(X, X), form)
        assert found.codes[0, 0].tolist() == rq.quantize(w, 0.3, spec=rq.QuantSpec(3)).tolist()


@pytest.mark.guarantee("No form of sequential error correction beats the rounding oracle", kind="sampled")
def test_graded_by_the_rounding_oracle() -> None:
    """|X w - X^ q|^2 is |X^ (v - q)|^2 plus a constant, v the corrected target: the oracle knows its least value."""
    alpha, d = 0.5, 12
    excess: dict[str, list[float]] = {name: [] for name in ("nearest", "gptq", "gpfq", "qronos", "descent")}
    for seed in range(12):
        w, X, X_hat = problem(seed, d, 60, 0.3)
        seen = moments(X, X_hat)
        v = corrected_target(w[None], seen.H[0], seen.M[0])[0]
        left = float(np.sum((X @ w - X_hat @ v) ** 2))
        best = best_rounding(v, alpha, spec=rq.QuantSpec(3), inputs=X_hat)
        start = one(d, alpha, SPEC)
        for name in excess:
            told = moments(X_hat, X_hat) if name == "gptq" else seen
            if name == "nearest":
                codes = rq.quantize(w, alpha, spec=rq.QuantSpec(3))
            else:
                found = sequential_layer(w[None], start, told, name)
                codes = found.codes[0, 0]
                if name == "descent":  # on its own scale, where its codes can be no better than the oracle's
                    alpha_d = float(found.scales[0, 0])
                    own = best_rounding(v, alpha_d, spec=rq.QuantSpec(3), inputs=X_hat)
                    error = rounding_error(codes, v, alpha_d, X_hat)
                    assert error >= float(own.lower_bound)
                    excess[name].append((error + left) / (float(best.objective) + left) - 1)
                    continue
            error = rounding_error(codes, v, alpha, X_hat)
            assert error >= float(best.lower_bound)
            excess[name].append((error + left) / (float(best.objective) + left) - 1)
    median = {name: float(np.median(e)) for name, e in excess.items()}
    assert median["nearest"] > median["gptq"] > median["qronos"] >= 0
    assert median["qronos"] > median["descent"]  # which also has the scale to itself


def test_descent_is_never_worse_than_qronos() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        W = rng.normal(size=(5, 8)).astype(np.float32)
        _, X, X_hat = problem(seed, 8)
        seen = moments(X, X_hat)
        for bits, terms in ((2, 1), (2, 2), (3, 1)):
            spec = rq.QuantSpec(bits, granularity=rq.PerChannel(0))
            start = encode_terms(W, spec=spec, terms=terms)
            B = W.astype(float) @ seen.M[0].T
            errors = {
                form: row_errors(sequential_layer(W, start, seen, form).decode(float), seen.H[0], B)
                for form in ("qronos", "descent")
            }
            # rounding of sums of 64 products about the size of the constant that is left out
            slack = 1e-12 * np.sum((X @ W.T.astype(float)) ** 2, axis=0) / len(X)
            assert np.all(errors["descent"] <= errors["qronos"] + slack)


@pytest.mark.parametrize("granularity", [rq.PerTensor(), rq.PerChannel(0), rq.PerGroup(1, 3)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_sums_stay_on_their_grids_and_counts(form: str, granularity: Any) -> None:
    """Also where counts differ from row to row: a row of one term is as it would be alone."""
    rng = np.random.default_rng(1)
    W = rng.normal(size=(4, 6)).astype(np.float32)
    _, X, X_hat = problem(3, 6)
    seen = moments(X, X_hat)
    spec = rq.QuantSpec(2, granularity=granularity)
    one_term, two = (encode_terms(W, spec=spec, terms=t) for t in (1, 2))
    found = sequential_layer(W, two, seen, form)
    assert found.codes.min() >= -2
    assert found.codes.max() <= 1
    assert found.codes[1].min() >= -1
    single = sequential_layer(W, one_term, seen, form)
    if granularity == rq.PerChannel(0):
        mixed = with_counts([one_term, two], [1, 2, 1, 2])
        both = sequential_layer(W, mixed, seen, form)
        assert np.allclose(both.decode()[::2], single.decode()[::2], rtol=1e-5)
        assert np.all(both.codes[1, ::2] == 0)
        assert np.allclose(both.decode()[1::2], found.decode()[1::2], rtol=1e-5)
    with pytest.raises(rq.ArgumentError, match="form='qronus'"):
        sequential_layer(W, two, seen, "qronus")


def test_moments_are_of_patches_and_centre() -> None:
    node = fold().node("conv4")
    rng = np.random.default_rng(2)
    X = rng.normal(size=(40, *fold().shapes[node.inputs[0]])).astype(np.float32)
    seen = layer_moments(node, X, X)
    P = patches(node.attrs, X).astype(float)
    H = np.einsum("ngkl,ngjl->gkj", P, P) / (len(X) * P.shape[-1])
    # float32 products, summed over 32 images at a time: gamma of the patches in one product
    assert np.all(
        np.abs(seen.H - H)
        <= 32 * P.shape[-1] * 2.0**-24 * np.einsum("ngkl,ngjl->gkj", abs(P), abs(P)) / (40 * P.shape[-1])
    )
    assert np.array_equal(seen.H, seen.M)
    about = seen.centred()
    assert np.allclose(about.H, seen.H - seen.mean[:, :, None] * seen.mean[:, None, :])
    W = rng.normal(size=(3, seen.H.shape[1]))
    assert np.all(output_errors(W, about.H) <= output_errors(W, seen.H) + 1e-9)
    assert np.all(np.linalg.eigvalsh(about.damped().H) > 0)


def fold() -> Any:
    return make_task(rq.load_network("resnet"), DATA.calibration.x[:2]).graph


def test_order_of_merit_on_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the logits of images not calibrated on, with 2-bit weights: descent < GPTQ < nearest."""
    monkeypatch.setattr("refquant.ptq.sequential.SHARES", (0.03,))  # one damping, for time
    task = make_task(rq.load_network("resnet"), DATA.calibration.x[:64], bits=(2, 8))

    def error(plan: rq.QuantPlan) -> float:
        return float(np.mean((rq.forward(task.graph, DATA.calibration.x[512:640], plan, mode="fake") - reference) ** 2))

    reference = rq.forward(task.graph, DATA.calibration.x[512:640]).astype(float)
    nearest = rq.QuantPlan({n.name: task.encode(n) for n in task.graph.linear_nodes}, task.activations)
    errors = {form: error(sequential(task, form)) for form in ("gptq", "descent")}
    assert errors["descent"] < errors["gptq"] < error(nearest)
    assert errors["descent"] < 0.2 * float(np.mean(reference**2))


def test_certified_activations_err_less_than_ranges() -> None:
    task = make_task(rq.load_network("cnn"), DATA.calibration.x[:64], bits=(4, 4))
    better = with_least_error(task)
    assert better.trace is task.trace
    for tensor, q in task.activations.items():
        x, mine = task.trace[tensor], better.activations[tensor]
        errors = [
            np.mean((rq.fake_quantize(x, v.scale, v.zero_point, spec=v.spec).astype(float) - x) ** 2) for v in (q, mine)
        ]
        assert errors[1] <= errors[0] * 1.01  # the scale is the best on a sample, to 1e-6
        assert mine.spec == q.spec


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("seed", "inputs", "images"), [(3, 72, 1), (1, 8, 5), (4, 8, 33), (7, 72, 33)])
def test_inputs_without_variance_are_no_obstacle(form: str, seed: int, inputs: int, images: int) -> None:
    """About the mean nothing is left but rounding, which may have a negative eigenvalue, as it has here."""
    rng = np.random.default_rng(seed)
    y = Node("y", "Gemm", ("x",), {"in_features": inputs, "out_features": 2}, {"weight": "w"})
    arrays = {"w": rng.normal(size=(2, inputs)).astype(np.float32)}
    x = (3 * rng.normal(size=(1, inputs))).repeat(images, axis=0)
    plan = rq.quantize_network(Graph("one", InputSpec("x", (inputs,)), "y", (y,), arrays), x, method=form, bits=(4, 8))
    assert np.isfinite(plan.weights["y"].decode()).all()


@pytest.mark.parametrize("profile", ["seed-floor@1", "seed-nearest@1"])
@pytest.mark.parametrize("form", FORMS)
def test_sums_of_many_terms_are_sound_and_no_worse_than_their_start(form: str, profile: str) -> None:
    """More terms than are searched at once, another number in each row."""
    rng = np.random.default_rng(5)
    W, (X, X_hat) = rng.normal(size=(14, 12)), problem(2, 12)[1:]
    seen, spec = moments(X, X_hat).damped(), weight_spec(profile, 2, rq.PerChannel(0))
    method = "joint" if profile == "seed-nearest@1" else "greedy"
    start = with_counts(encode_each(W, spec=spec, terms=14, method=method), np.arange(1, 15))
    found = sound(sequential_layer(W, start, seen, form), form)
    assert np.array_equal(found.counts, start.counts)
    H, M = seen.H[0], seen.H[0] if form == "gptq" else seen.M[0]
    if form == "gptq":
        found = sequential_layer(W, start, seen._replace(M=seen.H), form)
    before, after = (row_errors(sums.decode(np.float64), H, W @ M.T) for sums in (start, found))
    if profile == "seed-nearest@1":
        assert (after <= before + 2.0**-40 * np.abs(W @ M.T).sum())[6:].all()  # rows of more than one block


def test_directed_rounding_takes_terms_one_by_one() -> None:
    """Where inputs are orthogonal a centre is the weight: the digits of the definition."""
    W = np.random.default_rng(1).normal(size=(5, 7))
    spec = weight_spec("seed-floor@1", 2, rq.PerChannel(0))
    start = with_counts(encode_each(W, spec=spec, terms=5, method="greedy"), np.arange(1, 6))
    eye, zero = np.eye(7)[None], np.zeros((1, 7))
    found = sequential_layer(W, start, LayerMoments(eye, eye, zero, zero), "gptq")
    left = W
    for t, grid in enumerate(start.specs):
        alpha = start.scales[t].astype(np.float64)[:, None]
        q = np.clip(np.floor(left / alpha), grid.qmin, grid.qmax) * (t < start.counts[:, None])
        assert np.array_equal(found.codes[t], q)
        left = left - q * alpha


def test_descent_refits_scales_where_that_errs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    W, (X, X_hat) = np.random.default_rng(3).normal(size=(6, 12)), problem(4, 12)[1:]
    seen, spec = moments(X, X_hat).damped(), weight_spec("seed-nearest@1", 2, rq.PerChannel(0))
    start = encode_terms(W, spec=spec, terms=1, method="joint")
    refitted = sequential_layer(W, start, seen, "descent")
    monkeypatch.setattr(sequential_module, "_refitted", lambda Q, *rest: Q)
    fixed = sequential_layer(W, start, seen, "descent")
    assert np.array_equal(fixed.scales, start.scales)
    B = W @ seen.M[0].T
    errors = [row_errors(s.decode(np.float64), seen.H[0], B).sum() for s in (refitted, fixed)]
    assert errors[0] < errors[1]
