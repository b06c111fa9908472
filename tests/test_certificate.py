"""Certificates: confirmed by other code, never refuted by any codes or images that they cover; faults are noticed."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import refquant as rq
from refquant import ArgumentError, CertificateError, QuantPlan
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan import ActivationQuantizer
from refquant.theory import certificate, relax, zonotope
from refquant.theory.adversary import gradients, least_forms, moved_run
from refquant.theory.bounds import start_box
from refquant.theory.box import Box
from refquant.theory.certificate import certify, coverage, smallest_terms, term_counts
from refquant.theory.difference import quantized_network
from refquant.theory.pair import images_of
from refquant.theory.quantizer_error import quantizer_error
from refquant.theory.zonotope import check_certificates

Reals = NDArray[np.float64]


@cache
def zoo(name: str, bits: tuple[int, int], terms: int = 1) -> tuple[Graph, QuantPlan, Any]:
    """A network of the zoo, quantized on few calibration images; test images."""
    data, graph = rq.load_data("fashion-mnist"), rq.load_network(name)
    plan = rq.quantize_network(graph, data.calibration.x[:16], bits=bits, method="absmax")
    weights = {
        node.name: rq.encode_terms(
            graph.param(node, "weight"), spec=rq.QuantSpec(bits[0]), terms=terms, method="greedy"
        )
        for node in graph.linear_nodes
    }
    return graph, plan if terms == 1 else replace(plan, weights=weights), data.test.x


def small(seed: int, classes: int = 3) -> tuple[Graph, QuantPlan, NDArray[np.float32]]:
    """A convolution, a pool and two Gemm, quantized on the images themselves."""
    rng = np.random.default_rng(seed)
    window = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "groups": 1}
    nodes = (
        Node("c", "Conv", ("x",), {"in_channels": 1, "out_channels": 3, **window}, {"weight": "C"}),
        Node("r", "Relu", ("c",)),
        Node("p", "MaxPool", ("r",), {"kernel": [2, 2], "stride": [2, 2]}),
        Node("f", "Flatten", ("p",)),
        Node("h", "Gemm", ("f",), {"in_features": 12, "out_features": 6}, {"weight": "H", "bias": "b"}),
        Node("k", "Relu", ("h",)),
        Node("z", "Gemm", ("k",), {"in_features": 6, "out_features": classes}, {"weight": "Z"}),
    )
    shapes = {"C": (3, 1, 3, 3), "H": (6, 12), "b": (6,), "Z": (classes, 6)}
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    graph, x = Graph("small", InputSpec("x", (1, 4, 4)), "z", nodes, arrays), rng.normal(0, 1, (8, 1, 4, 4))
    _, trace = rq.forward(graph, x.astype(np.float32), trace=True)
    spec, activations = rq.QuantSpec(int(rng.integers(3, 9)), signed=False), {}
    for node in graph.linear_nodes:
        seen = trace[node.inputs[0]]
        parameters = rq.range_parameters(float(seen.min()), float(seen.max()), spec=spec, rule="affine")
        activations[node.inputs[0]] = ActivationQuantizer(spec, *parameters)
    weights = {
        node.name: rq.encode_terms(graph.param(node, "weight"), spec=rq.QuantSpec(4), terms=2, method="greedy")
        for node in graph.linear_nodes
    }
    return graph, QuantPlan(weights, activations), x.astype(np.float32)


def attacked_gaps(graph: Graph, plan: QuantPlan, x: Any, y: NDArray[Any]) -> Reals:
    """The least gaps to every class that an adversary reaches who moves codes against them; infinite at y."""
    C = graph.shapes[graph.output][0]
    reached = least_forms(graph, plan, x, np.eye(C)[y][:, None] - np.eye(C))
    reached[np.arange(len(y)), y] = np.inf
    return reached


def float_feed(graph: Graph, x: Any) -> Reals:
    return images_of(graph, x)[graph.input.name]


# ---- certificates ---------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Every certificate of the mlp at 8 and 4 bits on 48 test images is confirmed by zonotopes of other code",
    kind="checked",
)
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
@pytest.mark.parametrize("specified", [False, True])
def test_certificates_of_the_mlp_are_confirmed(bits: tuple[int, int], specified: bool) -> None:
    graph, plan, x = zoo("mlp", bits)
    found = certify(graph, plan, x[:48], specified=specified)
    proved = check_certificates(graph, plan, x[:48], found)
    assert found.certified.any()
    assert (forward_classes(graph, plan, x[:48]) == found.classes)[found.certified].all()
    others = np.isfinite(proved)
    assert (np.sign(proved) == np.sign(found.gaps))[
        others
    ].mean() > 0.99  # the two agree on what they cannot prove, too


def forward_classes(graph: Graph, plan: QuantPlan, x: Any) -> NDArray[np.int64]:
    return np.asarray(rq.forward(graph, x, plan, "fake").argmax(axis=1))


@pytest.mark.guarantee(
    "No adversary who moves codes as far as rounding may goes below a certified gap, on random networks", kind="sampled"
)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_adversary_goes_below_a_gap(seed: int) -> None:
    graph, plan, x = small(seed)
    found = certify(graph, plan, x)
    reached = attacked_gaps(graph, plan, x, found.classes)
    room = 2.0**-20 * np.abs(reached[np.isfinite(reached)]).max()  # the attack computes in float64, not outwards
    assert (reached[np.isfinite(reached)] >= found.gaps[np.isfinite(reached)] - room).all()
    check_certificates(graph, plan, x, found)


@pytest.mark.guarantee(
    "On the mlp at 8 bits adversarial codes close 80 % of what certificates allow for: no bound of that kind is much "
    "tighter",
    kind="checked",
)
def test_an_adversary_comes_close_to_the_gaps_of_the_mlp() -> None:
    graph, plan, x = zoo("mlp", (8, 8))
    x, found, network = x[:32], certify(graph, plan, x[:32]), quantized_network(graph, plan)
    reached = attacked_gaps(graph, plan, x, found.classes)
    z = moved_run(network, float_feed(graph, x), {})[network.output]
    gaps, others = z[np.arange(32), found.classes][:, None] - z, np.isfinite(reached)
    assert (reached >= found.gaps)[others].all()
    assert (gaps - reached)[others].mean() > 0.8 * (gaps - found.gaps)[others].mean()


@pytest.mark.guarantee(
    "No image of a certified region changes class, float or quantized, adversarial corners included", kind="sampled"
)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), radius=st.sampled_from([0.002, 0.01, 0.05]), specified=st.booleans())
def test_no_image_of_a_certified_region_changes_class(seed: int, radius: float, specified: bool) -> None:
    graph, plan, x = small(seed)
    rng, found = np.random.default_rng(seed), certify(graph, plan, x, radius=radius, specified=specified)
    y, C = found.classes, found.gaps.shape[1]
    network = quantized_network(graph, plan)
    still = moved_run(network, float_feed(graph, x), {})
    moves = [rng.choice([-1.0, 1.0], x.shape) for _ in range(3)]
    moves += [-np.sign(gradients(network, still, np.eye(C)[y] - np.eye(C)[i])[network.start]) for i in range(C)]
    for move in moves:
        near = (x + (radius - 2.0**-20) * move).astype(np.float32)  # |x| < 8: rounded by less than 2^-21
        assert np.abs(near.astype(np.float64) - x).max() <= radius
        for z, gaps in (
            (rq.forward(graph, near), found.float_gaps),
            (rq.forward(graph, near, plan, "fake"), found.gaps),
        ):
            wide = z.astype(np.float64)
            reached = wide[np.arange(len(y)), y][:, None] - wide
            assert (reached >= np.where(np.isinf(gaps), 0, gaps)).all()
            assert (z.argmax(axis=1) == y)[found.certified].all()


def test_a_region_holds_what_it_says() -> None:
    graph = Graph("flat", InputSpec("x", (1,), 0.1, 0.2, 0.3), "y", (Node("y", "Relu", ("x",)),), {})
    x, rng = np.array([[0.7], [-3.0]], np.float32), np.random.default_rng(0)
    box, feed = start_box(graph, x, 0.5), float_feed(graph, x)
    for _ in range(50):
        near = (x + rng.uniform(-0.5, 0.5, x.shape)).astype(np.float32)
        e = float_feed(graph, near) - feed
        assert ((box.low <= e) & (e <= box.high)).all()
    assert start_box(graph, x, 0.0).known


# ---- the checker by itself ------------------------------------------------------------------------------------


def branches(seed: int) -> tuple[Graph, QuantPlan, NDArray[np.float32]]:
    """A batch norm that folds and one that does not, a sum, both means, a tensor read twice; quantized."""
    rng = np.random.default_rng(seed)
    window = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]}
    norm = {role: role for role in ("gamma", "beta", "mean", "var")}
    nodes = (
        Node("c", "Conv", ("x",), {"in_channels": 2, "out_channels": 2, **window}, {"weight": "C"}),
        Node("n", "BatchNorm", ("c",), {"channels": 2, "eps": 0.1}, norm),
        Node("r", "Relu", ("n",)),
        Node("d", "Conv", ("r",), {"in_channels": 2, "out_channels": 2, **window, "groups": 2}, {"weight": "D"}),
        Node("a", "Add", ("d", "r")),
        Node("m", "BatchNorm", ("a",), {"channels": 2, "eps": 0.1}, norm),
        Node("p", "AveragePool", ("m",), {"kernel": [2, 2], "stride": [2, 2]}),
        Node("q", "MaxPool", ("a",), {"kernel": [2, 2], "stride": [2, 2]}),
        Node("k", "Concat", ("p", "q"), {"axis": 1}),
        Node("g", "GlobalAvgPool", ("k",)),
        Node("f", "Flatten", ("g",)),
        Node("z", "Gemm", ("f",), {"in_features": 4, "out_features": 3}, {"weight": "Z", "bias": "b"}),
    )
    shapes = {"C": (2, 2, 3, 3), "D": (2, 1, 3, 3), "Z": (3, 4), "b": (3,)}
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: rng.uniform(0.5, 2, 2).astype(np.float32) for name in norm}
    graph, x = Graph("branches", InputSpec("x", (2, 4, 4)), "z", nodes, arrays), rng.normal(0, 1, (6, 2, 4, 4))
    spec = rq.QuantSpec(int(rng.integers(3, 9)), rounding=("half_even", "floor")[seed % 2])
    q = ActivationQuantizer(spec, np.array(4 / spec.qmax, np.float32), np.array(0))
    weights = {
        n: rq.encode_terms(arrays[w], spec=rq.QuantSpec(4), terms=2, method="greedy")
        for n, w in (("d", "D"), ("z", "Z"))
    }
    return graph, QuantPlan(weights, dict.fromkeys("xrf", q)), x.astype(np.float32)


@pytest.mark.guarantee(
    "Gaps that zonotopes prove are below what runs and adversaries reach, on networks of all ops that they know",
    kind="sampled",
)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), specified=st.booleans())
def test_what_zonotopes_prove_holds(seed: int, specified: bool) -> None:
    graph, plan, x = branches(seed)
    found = certify(graph, plan, x, specified=specified)
    proved = check_certificates(graph, plan, x, found)
    z = rq.forward(graph, x, plan, "fake").astype(np.float64)
    others = np.isfinite(proved)
    assert (z[np.arange(len(z)), found.classes][:, None] - z >= proved)[others].all()
    if not specified:
        reached = attacked_gaps(graph, plan, x, found.classes)
        room = 2.0**-20 * np.abs(reached[others])  # the attack computes in float64
        assert (reached[others] >= proved[others] - room).all()


@pytest.mark.parametrize("fault", ["symbols left out", "roundings to nearest, at most a quarter of a step"])
def test_faults_of_zonotopes_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "symbols left out":
        fresh = zonotope._fresh
        monkeypatch.setattr(zonotope, "_fresh", lambda count, r: 0 * fresh(count, r))
    else:
        monkeypatch.setattr(zonotope, "REACH", {"half_even": (-0.25, 0.25), "floor": (-0.5, 0.0)})
    noticed = 0
    for seed in range(6):
        graph, plan, x = branches(seed)
        found = certify(graph, plan, x)
        proved, reached = check_certificates(graph, plan, x, found), attacked_gaps(graph, plan, x, found.classes)
        others = np.isfinite(proved)
        noticed += bool((reached[others] < proved[others] - 1e-3).any())
    assert noticed


# ---- on a set -------------------------------------------------------------------------------------------------


def test_coverage_counts_what_certificates_and_runs_say() -> None:
    graph, plan, x = zoo("mlp", (4, 4))
    found, certificates = coverage(graph, plan, x[:64]), certify(graph, plan, x[:64])
    assert found.images == 64
    assert found.certified == certificates.certified.sum() <= found.agreeing
    assert found.agreeing == (forward_classes(graph, plan, x[:64]) == certificates.classes).sum()


@pytest.mark.guarantee("No certified class changed in an integer-only run of the mlp on 32 test images", kind="checked")
def test_certificates_of_an_integer_only_network_hold() -> None:
    graph, data = rq.load_network("mlp"), rq.load_data("fashion-mnist")
    plan = rq.quantize_network(graph, data.calibration.x[:8], bits=(8, 8), method="absmax", integer=rq.IntegerSpec())
    found = certify(graph, plan, data.test.x[:32])
    classes = rq.forward(graph, data.test.x[:32], plan, "integer").argmax(axis=1)
    assert (classes == found.classes)[found.certified].all()
    assert coverage(graph, plan, data.test.x[:32]).certified == found.certified.sum() > 0


def test_smallest_terms_are_the_first_of_all_that_cover() -> None:
    graph, plan, x = zoo("mlp", (2, 8), 3)
    every = list(term_counts(graph, plan))
    assert len(every) == 27
    cost = [sum({"gemm1": 200704, "gemm2": 32768, "gemm3": 1280}[name] * T for name, T in c.items()) for c, _ in every]
    assert cost == sorted(cost)
    covered = [(counts, coverage(graph, p, x[:24])) for counts, p in every]
    enough = [(counts, found) for counts, found in covered if found.certified >= 0.75 * 24]
    assert smallest_terms(graph, every, x[:24], 0.75) == enough[0]
    assert smallest_terms(graph, every[:1], x[:24], 1.0) is None


# ---- planted faults -------------------------------------------------------------------------------------------


def test_a_certificate_that_says_too_much_is_refused() -> None:
    graph, plan, x = zoo("mlp", (4, 4))
    found = certify(graph, plan, x[:24])
    assert not found.certified.all()
    boast = replace(found, gaps=np.abs(found.gaps))
    with pytest.raises(CertificateError, match="gaps above 0"):
        check_certificates(graph, plan, x[:24], boast)
    with pytest.raises(CertificateError, match="float class"):
        check_certificates(graph, plan, x[:24], replace(found, classes=(found.classes + 1) % 10))


def test_a_certified_class_that_changed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, x = zoo("mlp", (2, 2))
    monkeypatch.setattr(certificate, "_least_gaps", lambda found, z, y: np.ones_like(z))
    with pytest.raises(CertificateError, match="that changed"):
        coverage(graph, plan, x[:64])


@pytest.mark.parametrize("fault", ["half a step", "no clipping", "slope of a kink"])
def test_faults_of_the_bounds_are_noticed_by_adversary_or_checker(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(*arguments: Any) -> Box:
        d = quantizer_error(*arguments)
        return Box(d.low / 2, d.high / 2)

    def unclipped(spec: Any, scale: Any, zero_point: Any, v: Box, to: str) -> Box:
        r = np.asarray(scale, np.float64) / 2 + np.zeros_like(v.low)
        return Box(-r, r)

    def straight(step: Any, at: Any) -> Any:
        piece = pointwise(step, at)
        return piece._replace(rest=Box(0 * piece.rest.low, 0 * piece.rest.high))

    pointwise = relax.PIECES["Relu"]
    if fault == "slope of a kink":
        monkeypatch.setitem(relax.PIECES, "Relu", straight)
    else:
        monkeypatch.setattr(relax, "quantizer_error", halved if fault == "half a step" else unclipped)
    noticed = 0
    for seed in range(16):
        graph, plan, x = small(seed)
        if fault == "no clipping":  # a scale that is too small: much is clipped
            plan = replace(plan, activations={n: replace(q, scale=q.scale / 3) for n, q in plan.activations.items()})
        found = certify(graph, plan, x)
        reached = attacked_gaps(graph, plan, x, found.classes)
        others = np.isfinite(reached)
        noticed += bool((reached[others] < found.gaps[others] - 1e-4).any())
    assert noticed


# ---- what is refused ------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    graph, plan, x = small(1)
    with pytest.raises(ArgumentError, match="radius=-1"):
        certify(graph, plan, x, radius=-1.0)
    with pytest.raises(ArgumentError, match="at least 2 classes"):
        certify(*small(1, classes=1))
    with pytest.raises(ArgumentError, match="share=2"):
        smallest_terms(graph, [], x, 2.0)
    with pytest.raises(ArgumentError, match="but should be 0"):
        check_certificates(graph, plan, x, certify(graph, plan, x, radius=0.1))
    wrapping = {name: replace(q, spec=replace(q.spec, overflow="wrap")) for name, q in plan.activations.items()}
    with pytest.raises(ArgumentError, match="wrap"):
        certify(graph, replace(plan, activations=wrapping), x)
