"""What a longer run has done so far, on disk: one that is broken off goes on from there and ends with the same bytes.

A state is one .npz file of two arrays, written beside and renamed, never pickled: `task`, a digest of the method and
of all that its result depends on, and `state`, in the form that the method keeps (`STATES`).  A method takes the state
as `done` and gives the next ones to `keep`.
"""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, FileError, complaint
from ..net.files import graph_to_json, read_arrays, write_arrays
from ..net.plan import QuantPlan
from ..net.plan_json import plan_from_json, plan_to_json
from .task import Task

__all__ = ["STATES", "Form", "digest", "resumable", "state_in"]


# ---- the forms ------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """A state as an array, and back; the latter raises ValueError (a FileError is one) for what is not such a state."""

    to_array: Callable[[Any], NDArray[Any]]
    from_array: Callable[[NDArray[Any]], Any]


def _losses(array: NDArray[Any]) -> tuple[float, ...]:
    if array.dtype != np.float64 or array.ndim != 1:
        raise ValueError(f"losses of type {array.dtype} and shape {array.shape}")
    return tuple(array.tolist())


PLAN = Form(
    lambda plan: np.frombuffer(plan_to_json(plan).encode(), np.uint8),
    lambda array: plan_from_json(array.tobytes().decode()),
)
LOSSES = Form(lambda losses: np.array(losses, np.float64), _losses)

STATES: dict[str, Form] = {
    "lapq": LOSSES,
    "adaquant": PLAN,
    "brecq": PLAN,
    "blockwise": PLAN,
    "blockwise-distilled": PLAN,
}
"""method -> what it keeps: the plan after each part, or the losses after each evaluation.  The others take seconds."""


def resumable(method: str, where: str) -> Form:
    """The form of the method's states; raises ArgumentError for a method without."""
    if method not in STATES:
        got, should = f"resume with method={method!r}", f"none, as it takes seconds, or one of {', '.join(STATES)}"
        raise ArgumentError(complaint(got, should, where))
    return STATES[method]


# ---- the file -------------------------------------------------------------------------------------------------


def digest(method: str, task: Task) -> NDArray[np.uint8]:
    """SHA-256 of all that a method's plan depends on, refquant's version too; progress is not among it.

    >>> from .task import make_task
    >>> from ..net.graph import Graph, InputSpec, Node
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[2]])})
    >>> tasks = [make_task(graph, [[1.0]], seed=seed) for seed in (0, 0, 1)]
    >>> len({digest("brecq", task).tobytes() for task in tasks})
    2
    """
    rng, source = task.rng.bit_generator, task.rng.bit_generator.seed_seq
    spawned = [str(getattr(source, name, None)) for name in ("entropy", "spawn_key", "n_children_spawned")]
    arrays = {f"graph.{name}": array for name, array in task.graph.arrays.items()}
    arrays |= {f"terms.{name}": np.asarray(counts) for name, counts in task.terms.items()}
    arrays |= {"images": task.images} | ({} if task.labels is None else {"labels": task.labels})
    facts = {
        "method": method,
        "version": version("refquant"),
        "graph": graph_to_json(task.graph),
        "arrays": {
            name: [a.dtype.str, a.shape, sha256(np.ascontiguousarray(a).tobytes()).hexdigest()]
            for name, a in arrays.items()
        },
        "starts": plan_to_json(QuantPlan(task.starts)),
        "grids": [task.bits, repr(task.granularity), task.profile, task.observer, task.budget],
        "random": [str(rng.state), spawned],
    }
    return np.frombuffer(sha256(json.dumps(facts, sort_keys=True).encode()).digest(), np.uint8)


def state_in(folder: str | os.PathLike[str], method: str, task: Task) -> tuple[Any | None, Callable[[Any], None]]:
    """What an earlier run of this task left in the folder, None if nothing, and what keeps the next states there.

    The file is METHOD-BUDGET.npz.  A state serves the machine that wrote it: another may round sums otherwise.

    Raises ArgumentError for a method without states, FileError for a state that belongs to other arguments or another
    version or is damaged, and for a folder that cannot be written.
    """
    form = resumable(method, "run_method")
    path, task_digest = Path(folder) / f"{method}-{task.budget or 1:g}.npz", digest(method, task)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(complaint(f"{error.strerror}", "a folder that can be written", str(folder))) from None

    def keep(state: Any) -> None:
        write_arrays(str(path), {"task": task_digest, "state": form.to_array(state)})

    return (_read(path, task_digest, form) if path.exists() else None), keep


def _read(path: Path, task_digest: NDArray[np.uint8], form: Form) -> Any:
    arrays = read_arrays(str(path))
    if set(arrays) != {"task", "state"}:
        raise FileError(complaint(f"arrays {sorted(arrays)}", "task and state", str(path)))
    if not np.array_equal(arrays["task"], task_digest):
        got, should = (
            "the state of a run with other arguments, or of another version",
            "that of this network, data, method and seed",
        )
        raise FileError(complaint(got, should, str(path), "remove it, or choose another folder"))
    try:
        return form.from_array(arrays["state"])
    except ValueError as error:
        raise FileError(complaint(f"{error}", "a state that a run has kept", str(path), "remove it")) from None
