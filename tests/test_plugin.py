"""The pytest plugin: five lines test a backend, failures can be read, nothing is passed over, others are let alone."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from refquant.conform.clauses import CLAUSES
from refquant.conform.operations import knobs
from refquant.quant.integer_spec import IntegerSpec
from refquant.quant.spec import QuantSpec

pytest_plugins = ["pytester"]

FIVE_LINES = """\
def test_golden(refquant_golden):
    refquant_golden()

def test_search(refquant_search):
    refquant_search()
"""

KERNELS = """\
from refquant.conform.operations import evaluate

def right(request):
    return evaluate(request)

def away(request):
    if request.op != "quantize":
        raise NotImplementedError("quantize alone")
    return evaluate(request, {"rounding": "half_away"})

def away_in_pools(request):
    return evaluate(request, {"rounding": "half_away"})

def crashes(request):
    raise ValueError("no memory")

def zero_point_at_the_end(request):  # of which level 1 has no case for quantize
    codes, z = evaluate(request)["codes"], request.inputs["zero_point"]
    return codes - 1 if z.size and z.min() == request.spec.qmax else codes
"""


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs pytest there, the plugin loaded by name whether or not it is installed."""
    pytester.makepyfile(test_mine=FIVE_LINES, kernels=KERNELS)
    plugin = ("-p", "no:refquant", "-p", "refquant.conform.plugin", "-p", "no:cacheprovider")
    return lambda *argv: pytester.runpytest_subprocess(*plugin, *argv)


FEW = ("--refquant-ops", "quantize", "--refquant-examples", "20")
ONE = ("--refquant-profile", "seed-nearest@1")
ONNX = ("--refquant-profile", "onnx@21")


def test_a_right_backend_passes_everything(run: Run) -> None:
    more = ("--refquant-ops", "requantize,average_pool", "--refquant-examples", "10")
    result = run("--refquant-backend", "kernels:right", *ONNX, *more)
    outcomes = result.parseoutcomes()
    assert result.ret == 0
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] > 30


def test_a_wrong_backend_fails_with_its_clause_and_its_diagnosis(run: Run) -> None:
    seeded = ("--refquant-ops", "quantize", "--refquant-examples", "100", "--hypothesis-seed", "0")
    result = run("--refquant-backend", "kernels:away", *ONNX, *seeded, "-k", "tie-01 or search")
    text = result.stdout.str()
    assert result.ret == 1
    assert result.parseoutcomes()["failed"] > 2
    for part in (
        "quantize, codes of reals (clauses Q1 to Q6): wrong",
        "got 1, should be 0",
        "explained by: ties away (clause Q4: ties away from zero where ties to even are asked for)",
        "the effect of failing: off by one",
        "semantics: QuantSpec(bits=8",
        "wrong; what explains every one: ties away",
        "search-quantize: quantize",
    ):
        assert part in text
    assert "Traceback" not in text


def test_a_search_finds_what_level_one_does_not_hold(run: Run) -> None:
    backend = ("--refquant-backend", "kernels:zero_point_at_the_end", *ONNX, "--refquant-ops", "quantize")
    assert run(*backend, "-k", "golden").ret == 0
    result = run(*backend, "-k", "search", "--hypothesis-seed", "0")
    assert result.parseoutcomes()["failed"] == 1
    assert "search-quantize: quantize" in result.stdout.str()


def test_known_deviations_excuse_and_may_not_be_stale(run: Run, pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("known.txt").write_text("average_pool | ties away | the unit has no other mode\n")
    few = ("--refquant-ops", "average_pool", "--refquant-examples", "10", "--refquant-known", "known.txt")
    wrong, right = (("--refquant-backend", f"kernels:{name}", *ONE, *few) for name in ("away_in_pools", "right"))
    assert run(*wrong).ret == 0
    result = run(*right)
    assert result.ret == 1
    line = "average_pool | ties away | the unit has no other mode"
    assert f"stale: no answer is explained by the known deviation {line}" in result.stdout.str()
    assert run(*right, "-k", "pool-000").ret == 0  # a part says nothing about it


def test_a_backend_that_declines_is_skipped_and_one_that_declines_all_fails(run: Run) -> None:
    result = run(
        "--refquant-backend", "kernels:away", *ONNX, "--refquant-ops", "dequantize", "-rs", "--refquant-examples", "5"
    )
    assert result.ret == 1
    assert "declined: quantize alone" in result.stdout.str()
    assert "nothing was tested: the backend declined all of 29 tests" in result.stdout.str()


def test_a_crash_is_a_finding(run: Run) -> None:
    result = run("--refquant-backend", "kernels:crashes", *ONNX, *FEW, "-k", "tie-000")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*: failed", "  ValueError: no memory"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*FEW,), "no profile; give --refquant-profile"),
        (("--refquant-profile", "onnx@99"), "profile 'onnx@99'"),
        ((*ONNX, "--refquant-ops", "quantise"), "no operation quantise"),
        ((*ONNX, *FEW), "no backend; give --refquant-backend"),
        ((*ONNX, *FEW, "--refquant-backend", "kernels:missing"), "kernels:missing"),
        ((*ONNX, *FEW, "--refquant-backend", "kernels:right", "--refquant-known", "no.txt"), "no.txt"),
    ],
)
def test_bad_settings_are_said(argv: tuple[str, ...], message: str, run: Run) -> None:
    result = run(*argv, "-x")
    assert result.ret not in (0, 5)
    assert message in result.stdout.str() + result.stderr.str()


def test_settings_and_a_fixture_take_the_place_of_options(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nrefquant_profile = onnx@21\nrefquant_ops = dequantize\nrefquant_examples = 5\n")
    pytester.makeconftest(
        "import kernels, pytest\n@pytest.fixture(scope='session')\ndef refquant_backend():\n    return kernels.right\n"
    )
    assert run().ret == 0


def test_runs_that_do_not_use_it_import_nothing_of_refquant(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_mine="import sys\n"
        "def test_lean():\n"
        "    loaded = {m for m in sys.modules if m.split('.')[0] == 'refquant'}\n"
        "    assert loaded == {'refquant', 'refquant.conform', 'refquant.conform.plugin'}, loaded\n"
        "    assert 'numpy' not in sys.modules\n"
    )
    result = run("-W", "error")
    assert result.parseoutcomes() == {"passed": 1}


def test_the_plugin_is_an_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"refquant": "refquant.conform.plugin"}


def test_importing_the_plugin_is_quick_in_modules() -> None:
    code = "import sys, refquant.conform.plugin; print(sorted(m for m in sys.modules if m in ('numpy', 'hypothesis')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_choice_has_one_clause() -> None:
    listed = [choice for choices in CLAUSES.values() for choice in choices]
    assert sorted(listed) == sorted(knobs(QuantSpec(8), IntegerSpec()))
