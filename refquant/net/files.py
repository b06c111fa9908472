"""Networks on disk: `NAME.json`, the graph, beside `NAME.npz`, its arrays.

The JSON file is one object:

- `name`: text.
- `input`: an object: `name`, `shape` (["N", then integers per image]), and, if not 1, 0 and 1, the numbers
  `scale`, `mean` and `std` of the transform (x scale - mean) / std.
- `output`: the name of the tensor that comes out.
- `nodes`: a list, each node after those that it reads: `name` (also that of the tensor it gives), `op` (a row
  of `ops.OPS`), `inputs` (tensor names), `attrs` (the op's attributes), `params` (from the op's name of an
  array to its name in the .npz file).
- optional facts: `dataset`, `test_accuracy`, `epochs`, `seed`, `torch`; `reference_logits_first8`, the outputs
  for the first 8 test images in the framework that trained it; `parameters` and `array_elements`, the number of
  trained and of stored values, which are checked.

Images are NCHW, a Conv's weight is (out, in / groups, height, width), a Gemm is y = x W^T + b.
A file is not trusted: unknown fields, fields given twice, and whatever `Graph` refuses are errors.

What each op has, attributes (in brackets those with a default) and arrays, and what an attribute is:

>>> for name, op in OPS.items():
...     attrs = [key if attr.default is None else f"[{key}]" for key, attr in op.attrs.items()]
...     print(f"{name}: {' '.join(attrs) or '-'}; {' '.join(op.params) or '-'}")
Conv: in_channels out_channels kernel stride [padding] [dilation] [groups]; weight bias
Gemm: in_features out_features; weight bias
BatchNorm: channels eps; gamma beta mean var
Relu: -; -
Relu6: -; -
Add: -; -
Concat: [axis]; -
MaxPool: kernel stride [padding] [dilation]; -
AveragePool: kernel stride [padding] [dilation] [count_include_pad]; -
GlobalAvgPool: -; -
Flatten: -; -
Softmax: [axis]; -
>>> for key in ("kernel", "padding", "groups"):
...     print(f"{key}: {OPS['Conv'].attrs[key].should}")
kernel: a list [vertical, horizontal] of integers of at least 1
padding: [vertical, horizontal] or [top, left, bottom, right], integers of at least 0
groups: an integer of at least 1
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from uuid import uuid4

import numpy as np

from ..errors import ArgumentError, FileError, complaint
from .graph import Graph, InputSpec, Node
from .op import Array
from .ops import OPS

__all__ = ["graph_to_json", "read_arrays", "read_network", "write_arrays", "write_network"]

Fields = Mapping[str, tuple[type, ...]]
"""From the name of a field to the JSON types that it may have."""

NUMBER = (int, float)
LIMIT = 2**63  # JSON numbers have no bound; beyond this none makes sense here, and all below fit float32
NETWORK: Fields = {"name": (str,), "input": (dict,), "output": (str,), "nodes": (list,)}
NOTES: Fields = {"dataset": (str,), "test_accuracy": NUMBER, "epochs": (int,), "seed": (int,), "torch": (str,)}
CHECKED: Fields = {"parameters": (int,), "array_elements": (int,), "reference_logits_first8": (list,)}
INPUT: Fields = {"name": (str,), "shape": (list,)}
TRANSFORM: Fields = {"scale": NUMBER, "mean": NUMBER, "std": NUMBER}
NODE: Fields = {"name": (str,), "op": (str,), "inputs": (list,), "attrs": (dict,), "params": (dict,)}


def _stem(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).removesuffix(".json")


def _refuse(got: str, should: str, where: str, todo: str = "") -> NoReturn:
    raise FileError(complaint(got, should, where, todo))


# ---- reading --------------------------------------------------------------------------------------------------


def read_network(path: str | os.PathLike[str]) -> Graph:
    """The network of NAME.json and NAME.npz; path is that of the .json file, with or without its ending.

    Raises FileError for a file that is missing, damaged, or does not hold a sound network.

    >>> import tempfile
    >>> node = Node("y", "Relu", ("x",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_network(Graph("positive", InputSpec("x", (2,)), "y", (node,), {}), folder + "/positive")
    ...     read_network(folder + "/positive.json").nodes[0].op
    'Relu'
    """
    stem = _stem(path)
    where = f"{stem}.json"
    top = _fields(_read_json(where), NETWORK, {**NOTES, **CHECKED}, where)
    arrays = read_arrays(f"{stem}.npz")
    spec = _fields(top["input"], INPUT, TRANSFORM, f"input of {where}")
    transform = {key: float(spec[key]) for key in TRANSFORM if key in spec}
    nodes = tuple(_node(entry, f"nodes[{i}] of {where}") for i, entry in enumerate(top["nodes"]))
    notes = {key: top[key] for key in NOTES if key in top}
    try:
        entrance = InputSpec(spec["name"], _image_shape(spec["shape"], where), **transform)
        graph = Graph(top["name"], entrance, top["output"], nodes, arrays, _logits(top, where), notes)
    except ArgumentError as error:
        raise FileError(f"{where}: {error}") from None
    for key, count in _counts(graph).items():
        if top.get(key, count) != count:
            _refuse(f"{key}={top[key]}", f"{count}, as counted in the arrays", where)
    return graph


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _read_json(where: str) -> object:
    try:
        text = Path(where).read_text(encoding="utf-8")
        found: object = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except OSError as error:
        _refuse(f"{error.strerror}", "a readable file", where)
    except (ValueError, RecursionError) as error:
        _refuse(f"{error}", "a JSON object in UTF-8", where)
    return found


def read_arrays(where: str) -> dict[str, Array]:
    """The arrays of an .npz file, never unpickled; FileError where it is not one."""
    damage = (ValueError, KeyError, EOFError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error)
    try:
        with open(where, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                _refuse("a single array", "an .npz archive", where)
            return {name: archive[name] for name in archive.files}
    except damage as error:
        _refuse(f"{type(error).__name__}: {error}", "an .npz archive of plain arrays", where)
    except OSError as error:
        _refuse(f"{error.strerror or error}", "a readable file", where)


def _fields(entry: object, needed: Fields, others: Fields, where: str) -> dict[str, Any]:
    """The entry itself, if it is an object of the needed fields and perhaps others, each of its type."""
    if not isinstance(entry, dict):
        _refuse(f"{type(entry).__name__}", "an object", where)
    known = {**needed, **others}
    for key in [key for key in entry if key not in known]:
        _refuse(f"field {key!r}", f"one of {', '.join(known)}", where, "correct or remove it")
    for key in [key for key in needed if key not in entry]:
        _refuse(f"no field {key!r}", "given", where)
    for key, value in entry.items():
        if type(value) not in known[key]:
            _refuse(f"{key} of type {type(value).__name__}", " or ".join(t.__name__ for t in known[key]), where)
        if type(value) in NUMBER and not abs(value) < LIMIT:
            _refuse(f"{key}={value}", "of magnitude below 2^63", where)
    return entry


def _node(entry: object, where: str) -> Node:
    node = _fields(entry, NODE, {}, where)
    for name in [*node["inputs"], *node["params"].values()]:
        if type(name) is not str:
            _refuse(f"{name!r} as a name", "text", where)
    return Node(node["name"], node["op"], tuple(node["inputs"]), node["attrs"], node["params"])


def _image_shape(shape: list[Any], where: str) -> tuple[int, ...]:
    if shape[:1] != ["N"]:
        _refuse(f"input shape {shape}", '["N", then integers per image]', where)
    return tuple(shape[1:])


def _logits(top: Mapping[str, Any], where: str) -> Array | None:
    if "reference_logits_first8" not in top:
        return None
    rows = top["reference_logits_first8"]
    whole = len(rows) == 8 and all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows)
    if not whole or not all(type(v) in NUMBER and abs(v) < LIMIT for row in rows for v in row):
        _refuse("reference_logits_first8", "8 rows of as many numbers of magnitude below 2^63", where)
    return np.array(rows, np.float64).astype(np.float32)


def _counts(graph: Graph) -> dict[str, int]:
    untrained = {
        name for node in graph.nodes for role, name in node.params.items() if not OPS[node.op].params[role].trained
    }
    sizes = {name: array.size for name, array in graph.arrays.items()}
    stored = sum(sizes.values())
    return {"parameters": stored - sum(sizes[name] for name in untrained), "array_elements": stored}


# ---- writing --------------------------------------------------------------------------------------------------


def write_network(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Nothing is returned; NAME.json and NAME.npz hold the network, so that `read_network` gives it back.

    path: that of the .json file, with or without its ending.  Each file is written beside and renamed, so that
    a reader finds an old or a new one, never a part; equal networks give equal bytes.

    Raises FileError where a file cannot be written, ArgumentError for reference logits of other than 8 images.
    See `read_network` for an example.
    """
    if graph.reference_logits is not None and len(graph.reference_logits) != 8:
        got = f"reference logits of {len(graph.reference_logits)} images"
        raise ArgumentError(complaint(got, "of 8", "write_network"))
    stem = _stem(path)
    write_arrays(f"{stem}.npz", graph.arrays)
    text = json.dumps(graph_to_json(graph), indent=1, allow_nan=False) + "\n"
    _replace(f"{stem}.json", lambda file: file.write(text.encode()))


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The object that NAME.json holds: everything but the arrays.

    >>> graph_to_json(Graph("positive", InputSpec("x", (2,)), "y", (Node("y", "Relu", ("x",)),), {}))["output"]
    'y'
    """
    spec, logits = graph.input, graph.reference_logits
    entrance = {"name": spec.name, "shape": ["N", *spec.shape], **{key: getattr(spec, key) for key in TRANSFORM}}
    reference = {} if logits is None else {"reference_logits_first8": logits.astype(np.float64).tolist()}
    nodes = [
        {"name": n.name, "op": n.op, "inputs": n.inputs, "attrs": dict(n.attrs), "params": dict(n.params)}
        for n in graph.nodes
    ]
    facts = {"input": entrance, "output": graph.output, **_counts(graph), **graph.notes}
    return {"name": graph.name, **facts, **reference, "nodes": nodes}


def write_arrays(where: str, arrays: Mapping[str, Array]) -> None:
    """Nothing is returned; the .npz file holds the arrays, so that `read_arrays` gives them back.

    Written beside and renamed; equal arrays give equal bytes.  Raises FileError where it cannot be written.
    """
    _replace(where, lambda file: _save_arrays(file, arrays))


def _save_arrays(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Like `np.savez`, but for any names: there, an array called "file" would be an argument."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:  # no date: equal bytes
                np.lib.format.write_array(member, array, allow_pickle=False)


def _replace(where: str, write: Callable[[BinaryIO], object]) -> None:
    beside = f"{where}.{uuid4().hex}.tmp"
    try:
        with open(beside, "xb") as file:
            write(file)
        os.replace(beside, where)
    except OSError as error:
        _refuse(f"{error.strerror}", "a place that can be written", where)
    finally:
        Path(beside).unlink(missing_ok=True)
