"""The main job: the lossless end, determinism, a user's own network, and every refusal of the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.cli import main
from refquant.net.files import write_network
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan_json import plan_from_json, plan_to_json
from refquant.ptq.complexity import complexity
from refquant.ptq.methods import calibrate
from refquant.ptq.multiterms import lossless_terms
from refquant.ptq.observe import RANGES, output_errors, second_moment
from refquant.ptq.study import Images, run_study
from refquant.zoo import NETWORKS

DATA = rq.load_data("fashion-mnist")
LABELS = np.asarray(DATA.test.y)


@pytest.mark.guarantee(
    "Enough terms give the float weights bit for bit and identical logits, on all three networks",
    kind="checked",
    clauses="M1 M2",
)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("profile", ["seed-nearest@1", "seed-floor@1"])
def test_enough_terms_are_the_float_network(name: str, bits: int, profile: str) -> None:
    graph = fold_batch_norm(rq.load_network(name))
    base = rq.profile(profile, bits=bits)
    spec = rq.QuantSpec(bits, rounding=base.rounding, granularity=rq.PerChannel(0))
    weights = {n.name: lossless_terms(graph.param(n, "weight"), spec) for n in graph.linear_nodes}
    for node in graph.linear_nodes:
        decoded, weight = weights[node.name].decode(), graph.param(node, "weight")
        assert decoded.dtype == weight.dtype
        assert decoded.tobytes() == (weight + np.float32(0)).tobytes()  # codes know no -0
    images = DATA.test.x[:200]
    logits = rq.forward(graph, images, rq.QuantPlan(weights), mode="fake")
    assert logits.tobytes() == rq.forward(graph, images).tobytes()


def test_lossless_counts_are_minimal() -> None:
    weight = rq.load_network("mlp").arrays["gemm3.weight"]
    spec = rq.QuantSpec(3, granularity=rq.PerChannel(0))
    sums = lossless_terms(weight, spec)
    for c, count in enumerate(sums.counts):
        partial = sums.partial_sums()[:, c].astype(np.float32)
        assert np.array_equal(partial[count - 1], weight[c])
        assert not np.array_equal(partial[count - 2], weight[c])


def test_output_errors_are_what_the_layer_shows() -> None:
    graph = fold_batch_norm(rq.load_network("resnet"))
    _, trace = rq.forward(graph, DATA.calibration.x[:20], trace=True)
    for name in ("conv1", "conv4", "conv8", "gemm1"):
        node = graph.node(name)
        weight = graph.param(node, "weight")
        spec = rq.QuantSpec(4, granularity=rq.PerChannel(0))
        plan = rq.QuantPlan({name: rq.encode_terms(weight, spec=spec, terms=1)})
        _, other = rq.forward(graph, DATA.calibration.x[:20], plan, mode="fake", trace=True)
        seen = np.sum((other[name].astype(float) - trace[name]) ** 2, axis=0).reshape(len(weight), -1).sum(axis=1) / 20
        C = second_moment(node, trace[node.inputs[0]])
        told = output_errors(plan.weights[name].decode() - weight, C)
        # float32 products of up to 288 terms: relative error below gamma_288 = 2e-5 of |W||x|, and errors are
        # about 1/20 of the outputs, so their squares agree to 40 * 2e-5
        assert told == pytest.approx(seen, rel=1e-3)


def test_observers_take_the_ends_or_leave_out_a_ten_thousandth() -> None:
    values = np.random.default_rng(0).permutation(np.arange(100_001, dtype=np.float64))
    assert RANGES["minmax"](values) == (0.0, 100_000.0)
    assert RANGES["percentile"](values) == pytest.approx((10.0, 99_990.0), abs=1e-6)
    plans = [
        calibrate(
            rq.load_network("mlp"),
            DATA.calibration.x[:32],
            method="certified",
            bits=(4, 8),
            granularity=rq.PerTensor(),
            profile="seed-nearest@1",
            observer=observer,
        ).axis.activations
        for observer in RANGES
    ]
    assert all(plans[1][name].scale <= plans[0][name].scale for name in plans[0])
    assert any(plans[1][name].scale < plans[0][name].scale for name in plans[0])


def test_complexity_by_hand() -> None:
    graph = rq.load_network("mlp")
    plan = rq.quantize_network(graph, DATA.calibration.x[:16], bits=(4, 8))
    single = complexity(graph, plan)
    assert single.bit_operations == (784 * 256 + 256 * 128 + 128 * 10) * 4 * 8
    assert single.weight_bits == (784 * 256 + 256 * 128 + 128 * 10) * 4 + 32 * (256 + 128 + 10)


def test_plans_survive_json_and_nothing_else_is_accepted() -> None:
    graph = rq.load_network("mlp")
    plan = rq.quantize_network(graph, DATA.calibration.x[:16], bits=(3, 8), budget=1.5)
    again = plan_from_json(plan_to_json(plan))
    x = DATA.test.x[:50]
    assert rq.forward(graph, x, again, mode="fake").tobytes() == rq.forward(graph, x, plan, mode="fake").tobytes()
    broken = json.loads(plan_to_json(plan))
    broken["weights"]["gemm3"]["codes"]["values"][0] = 99
    for text in ("", "{}", "[]", '{"schema": "refquant-plan-1"}', json.dumps(broken)):
        with pytest.raises(rq.FileError):
            plan_from_json(text)


def study(out: Path, threads: str) -> None:
    options = ["--network", "cnn", "--images", "100", "--weight-bits", "2", "--budget", "1.7", "--json", "--out"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "refquant", "study", *options, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "results.json").read_text())


@pytest.mark.guarantee("`refquant study` writes the same bytes for any thread setting", kind="checked")
def test_two_runs_write_the_same_bytes_for_any_thread_setting(tmp_path: Path) -> None:
    for name, threads in (("one", "1"), ("two", "2")):
        study(tmp_path / name, threads)
    for file in ("plan.json", "results.json", "report.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count("<svg") == 9
    assert "http" not in page.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
        "http://creativecommons.org/", ""
    )


def test_results_tell_the_truth_about_their_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--network", "mlp", "--images", "300", "--out", str(tmp_path)]) == 0
    assert "lossless weights" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    plan = plan_from_json((tmp_path / "plan.json").read_text())
    logits = rq.forward(rq.load_network("mlp"), DATA.test.x[:300], plan, mode="fake")
    point = next(p for p in results["points"] if p["budget"] == results["budget"])
    assert point["top1"] == np.mean(logits.argmax(axis=1) == LABELS[:300])
    assert point["bit_operations"] == complexity(rq.load_network("mlp"), plan).bit_operations
    assert all(p["bit_operations_vs_single"] <= (p["budget"] or 99) for p in results["points"])
    assert [p["weights_bit_exact"] for p in results["points"]] == [False] * 5 + [True]


def test_a_network_with_nothing_to_quantize_or_no_classes_is_refused() -> None:
    pool = Node("pool", "GlobalAvgPool", ("x",))
    flat = Node("flat", "Flatten", ("pool",))
    conv = Node(
        "conv",
        "Conv",
        ("x",),
        {"in_channels": 1, "out_channels": 2, "kernel": [1, 1], "stride": [1, 1]},
        {"weight": "w"},
    )
    images = Images(np.ones((4, 1, 2, 2)), np.ones((4, 1, 2, 2)), None)
    graphs = [
        Graph("pooled", InputSpec("x", (1, 2, 2)), "flat", (pool, flat), {}),
        Graph("map", InputSpec("x", (1, 2, 2)), "conv", (conv,), {"w": np.ones((2, 1, 1, 1), np.float32)}),
    ]
    for graph in graphs:
        with pytest.raises(rq.ArgumentError, match=f"study of {graph.name}"):
            run_study(graph, images, granularity=rq.PerChannel(0))


def test_a_users_own_network_and_data(tmp_path: Path) -> None:
    graph = rq.load_network("mlp")
    write_network(graph, tmp_path / "mine.json")
    x = DATA.test.x[:64]
    np.savez(tmp_path / "data.npz", calibration_x=DATA.calibration.x[:32], test_x=x)
    where = ["--network", str(tmp_path / "mine.json"), "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path)]
    assert main(["study", *where]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert "top1" not in results["points"][0]
    assert results["images"] == 64


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--network nowhere.json", "nowhere.json"),
        ("--network alexnet", "alexnet"),
        ("--data nowhere.npz", "nowhere.npz"),
        ("--weight-bits 1", "weight bits 1"),
        ("--act-bits many", "--act-bits"),
        ("--act-bits 99", "activation bits 99"),
        ("--budget 0.5", "budget=0.5"),
        ("--budget nan", "budget=nan"),
        ("--granularity row", "--granularity"),
        ("--granularity group:0", "--granularity"),
        ("--images 0", "--images 0"),
        ("--out FILE/below", "--out"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    arguments = [o.replace("FILE", str(tmp_path / "file")) for o in options.split()]
    out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
    assert main(["study", "--network", "mlp", *arguments, *out]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out/*.json"))


@pytest.mark.parametrize(
    "arrays",
    [
        {"test_x": DATA.test.x[:4]},
        {"calibration_x": DATA.test.x[:4], "test_x": DATA.test.x[:4], "extra": np.ones(1)},
        {"calibration_x": DATA.test.x[:4, 0], "test_x": DATA.test.x[:4]},
        {"calibration_x": DATA.test.x[:4], "test_x": DATA.test.x[:4], "test_y": np.zeros(3, int)},
        {"calibration_x": np.full((2, 1, 28, 28), np.nan), "test_x": DATA.test.x[:4]},
        {"calibration_x": DATA.test.x[:0], "test_x": DATA.test.x[:4]},
        {"calibration_x": DATA.test.x[:4], "test_x": DATA.test.x[:0]},
    ],
    ids=["missing", "unknown", "wrong shape", "wrong labels", "NaN", "no calibration", "no test"],
)
def test_bad_data_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    options = ["--network", "mlp", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out")]
    assert main(["study", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("profile", ["onnx@21", "brevitas@1", "pytorch-fake@2", "tflite-double@1"])
def test_vendors_profiles_are_plans_too(profile: str) -> None:
    graph, images = rq.load_network("mlp"), rq.load_data("fashion-mnist")
    plan = rq.quantize_network(graph, images.calibration.x[:8], method="absmax", bits=(8, 8), profile=profile)
    assert {q.spec for q in plan.activations.values()} == {rq.profile(profile, signed=False)}
    assert plan.weights["gemm1"].specs[0].rounding == rq.profile(profile).rounding
    assert rq.forward(graph, images.test.x[:4], plan, mode="fake").shape == (4, 10)


def test_a_method_of_the_table_is_studied_at_one_term_and_at_the_budget() -> None:
    images = Images(DATA.calibration.x[:300], DATA.test.x[:60], LABELS[:60], DATA.calibration.y)
    granularity = rq.PerChannel(0)
    study = run_study(rq.load_network("mlp"), images, bits=(2, 8), budget=1.5, granularity=granularity, method="gpfq")
    assert [point["budget"] for point in study.results["points"]] == [1.0, 1.5, None]
    assert study.results["method"] == "gpfq"
    assert study.results["calibration_images"] == 300  # those of one that encodes each weight alone are 256 at most
    assert study.results["points"][1]["bit_operations_vs_single"] == pytest.approx(1.5, abs=0.02)
    assert study.results["points"][1]["allocation_gap"] is None
    assert study.results["points"][2]["weights_bit_exact"]
    with pytest.raises(rq.ArgumentError, match="method"):
        run_study(rq.load_network("mlp"), images, granularity=granularity, method="magic")


def test_a_budget_beyond_four_terms_is_spent_and_drawing_methods_start_anew() -> None:
    images = Images(DATA.calibration.x[:64], DATA.test.x[:20], LABELS[:20])
    graph = rq.load_network("mlp")
    conditions: dict[str, Any] = {"bits": (2, 8), "granularity": rq.PerTensor()}
    for method in ("certified", "bias-corrected"):
        point = run_study(graph, images, budget=6.0, method=method, **conditions).results["points"][-2]
        assert 5 < point["bit_operations_vs_single"] <= 6
    study = run_study(graph, images, budget=2.0, method="adaquant", **conditions)
    plan = rq.quantize_network(graph, images.calibration, budget=2.0, method="adaquant", **conditions)
    assert plan_to_json(study.plan) == plan_to_json(plan)
