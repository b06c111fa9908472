"""States of longer runs: broken off anywhere and taken up again, the bytes are those of an unbroken run."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.cli import main
from refquant.errors import ArgumentError, FileError
from refquant.net.files import read_arrays, write_arrays
from refquant.net.plan_json import plan_to_json
from refquant.ptq import lapq as lapq_module
from refquant.ptq import methods
from refquant.ptq import resume as resume_module
from refquant.ptq.adaquant import adaquant
from refquant.ptq.brecq import blockwise, brecq
from refquant.ptq.distill import blockwise_distilled
from refquant.ptq.lapq import lapq, search
from refquant.ptq.methods import quantize_network, run_method
from refquant.ptq.resume import STATES, digest
from refquant.ptq.study import Images, run_study
from refquant.ptq.task import Task, make_task

_place = importlib.util.spec_from_file_location("small_network", Path(__file__).with_name("small_network.py"))
assert _place is not None
assert _place.loader is not None
network: Any = importlib.util.module_from_spec(_place)
_place.loader.exec_module(network)
X, Y, trained = network.X, network.Y, network.trained

QUICK: dict[str, Callable[..., rq.QuantPlan]] = {  # the table's methods, with few steps
    "lapq": lambda task, **kw: lapq(task, evaluations=25, **kw),
    "adaquant": lambda task, **kw: adaquant(task, steps=60, batch=16, **kw),
    "brecq": lambda task, **kw: brecq(task, steps=60, scale_steps=20, **kw),
    "blockwise": lambda task, **kw: blockwise(task, steps=60, **kw),
    "blockwise-distilled": lambda task, **kw: blockwise_distilled(task, steps=60, distill_steps=20, **kw),
}


class Broken(Exception):  # noqa: N818 (what a user's interrupt is)
    pass


class Progress:
    """Counts its calls from within a method, and breaks the run at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.seen = at, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen += what.startswith(("reconstructing", "moving scales"))
        if self.seen == self.at:
            raise Broken


def small(progress: Callable[[str, int, int], None], **kw: Any) -> Task:
    return make_task(trained(), X[:48], labels=Y[:48], bits=(3, 4), progress=progress, **kw)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, run in QUICK.items():
        monkeypatch.setitem(methods.METHODS, name, run)
    monkeypatch.setattr(lapq_module, "POWERS", np.linspace(2, 4, 3))


@pytest.mark.guarantee(
    "A run broken off and taken up again from its folder gives the unbroken run's plan, byte for byte", kind="sampled"
)
@pytest.mark.parametrize("budget", [None, 1.5])
@pytest.mark.parametrize("method", STATES)
def test_a_run_that_breaks_off_goes_on_to_the_same_bytes(method: str, budget: float | None, tmp_path: Path) -> None:
    whole, count = Progress(), Progress()
    expected = plan_to_json(run_method(method, small(whole, budget=budget)))
    for at in (12, 20) if method == "lapq" else (3, 3):  # of 25 evaluations; of two reports a part
        with pytest.raises(Broken):
            run_method(method, small(Progress(at), budget=budget), tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{method}-{budget or 1:g}.npz"]
    assert plan_to_json(run_method(method, small(count, budget=budget), tmp_path)) == expected
    assert plan_to_json(run_method(method, small(Progress(), budget=budget), tmp_path)) == expected  # from the end
    assert method == "lapq" or count.seen < whole.seen


def test_known_losses_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[float, ...]] = []
    whole = search(small(Progress()), evaluations=12, keep=kept.append)
    assert [len(losses) for losses in kept] == list(range(1, 3 + 12 + 1))
    assert kept[-1] == (*whole.losses.tolist(), *whole.trajectory.losses.tolist())
    computed: list[float] = []
    true_loss = lapq_module.calibration_loss

    def counted(task: Task, plan: rq.QuantPlan) -> float:
        computed.append(true_loss(task, plan))
        return computed[-1]

    monkeypatch.setattr(lapq_module, "calibration_loss", counted)
    again = search(small(Progress()), evaluations=12, done=kept[7])
    assert computed == list(kept[-1][8:])
    assert plan_to_json(again.plan) == plan_to_json(whole.plan)
    wrong = (*kept[7][:-1], 0.0)  # a loss that is not the task's leads elsewhere
    assert plan_to_json(search(small(Progress()), evaluations=12, done=wrong).plan) != plan_to_json(whole.plan)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"bits": (3, 5)},
        {"labels": Y[1:49]},
        {"calibration": X[1:49]},
        {"observer": "percentile"},
        {"granularity": rq.PerTensor()},
        {"graph": trained().replace_arrays({"b1": trained().arrays["b1"] + np.float32(1e-6)})},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_state_of_other_arguments_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    same = {"graph": trained(), "calibration": X[:48], "labels": Y[:48], "bits": (3, 4)}
    with pytest.raises(Broken):
        run_method("blockwise", make_task(**same, progress=Progress(3)), tmp_path)
    with pytest.raises(FileError, match=r"other arguments.*blockwise-1\.npz.*remove it"):
        run_method("blockwise", make_task(**{**same, **other}), tmp_path)
    run_method("blockwise", make_task(**same), tmp_path)


def test_the_digest_knows_the_method_the_terms_and_where_the_generator_is() -> None:
    task = small(Progress())
    used, spawned = small(Progress()), small(Progress())
    used.rng.random()
    spawned.rng.spawn(1)
    starts = {"gemm1": task.encode(task.graph.node("gemm1"))}
    others = [used, spawned, make_task(trained(), X[:48], bits=(3, 4))]
    others += [replace(task, terms={"gemm1": 2}), replace(task, starts=starts), replace(task, budget=1.5)]
    digests = [digest("brecq", one).tobytes() for one in (task, *others)] + [digest("lapq", task).tobytes()]
    assert len(set(digests)) == len(digests)
    assert digest("brecq", small(Progress(5))).tobytes() == digests[0]  # progress changes nothing


def test_the_digest_knows_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    task = small(Progress())
    here = digest("brecq", task).tobytes()
    monkeypatch.setattr(resume_module, "version", lambda name: "0.0.1")
    assert digest("brecq", task).tobytes() != here


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: {"task": a["task"]}, "task and state"),
        (lambda a: {**a, "state": a["state"][:-1]}, "schema"),
        (lambda a: {**a, "state": np.zeros(3)}, "a state that a run has kept"),
    ],
    ids=["no state", "a plan cut short", "losses in place of a plan"],
)
def test_damaged_states_are_refused(change: Any, text: str, tmp_path: Path) -> None:
    run_method("adaquant", small(Progress()), tmp_path)
    path = tmp_path / "adaquant-1.npz"
    write_arrays(str(path), change(read_arrays(str(path))))
    with pytest.raises(FileError, match=text):
        run_method("adaquant", small(Progress()), tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(FileError, match="npz"):
        run_method("adaquant", small(Progress()), tmp_path)


def test_losses_of_another_type_are_refused(tmp_path: Path) -> None:
    run_method("lapq", small(Progress()), tmp_path)
    path = str(tmp_path / "lapq-1.npz")
    write_arrays(path, {**read_arrays(path), "state": np.zeros(3, np.float32)})
    with pytest.raises(FileError, match="float32"):
        run_method("lapq", small(Progress()), tmp_path)


def test_methods_of_seconds_keep_nothing_and_say_so(tmp_path: Path) -> None:
    for method in sorted(set(methods.METHODS) - set(STATES)):
        with pytest.raises(ArgumentError, match="lapq, adaquant"):
            quantize_network(trained(), X[:8], method=method, resume=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="a folder that can be written"):
        quantize_network(trained(), X[:8], method="lapq", bits=(3, 4), resume=tmp_path / "file")


def test_a_study_goes_on_at_the_station_where_it_broke_off(tmp_path: Path) -> None:
    images = Images(X[:32], X[:64], Y[:64], Y[:32])

    def study(progress: Progress, folder: Path | None) -> Any:
        more: dict[str, Any] = {"bits": (3, 4), "method": "blockwise", "granularity": rq.PerChannel(0)}
        return run_study(trained(), images, **more, resume=folder, progress=progress)

    whole = Progress()
    expected = study(whole, None)
    with pytest.raises(Broken):
        study(Progress(whole.seen - 2), tmp_path)
    found = study(Progress(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blockwise-1.5.npz", "blockwise-1.npz"]
    assert found.results == expected.results
    assert plan_to_json(found.plan) == plan_to_json(expected.plan)


def test_the_command_has_the_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["study", "--network", "mlp", "--images", "20", "--out", str(tmp_path / "out"), "--json"]
    assert main([*argv, "--method", "gptq", "--resume", str(tmp_path)]) == 2
    assert (
        "resume with method='gptq', but should be none, as it takes seconds, or one of lapq" in capsys.readouterr().err
    )
