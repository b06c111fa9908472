"""A graph at hand is sound, on disk it comes back the same, and a damaged file is refused with a reason."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refquant.errors import ArgumentError, FileError
from refquant.net.files import read_network, write_network
from refquant.net.forward import forward
from refquant.net.graph import Graph, InputSpec, Node

Top = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def f32(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def small() -> tuple[Top, Arrays]:
    """A network of every kind of entry, as its file has it: the JSON object and the arrays."""
    rng = np.random.default_rng(7)
    arrays = {
        "conv.weight": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "conv.bias": rng.normal(size=4).astype(np.float32),
        "gamma": np.ones(4, np.float32),
        "beta": np.zeros(4, np.float32),
        "mean": np.zeros(4, np.float32),
        "var": np.ones(4, np.float32),
        "gemm.weight": rng.normal(size=(10, 4)).astype(np.float32),
    }
    conv = {"in_channels": 2, "out_channels": 4, "kernel": [3, 3], "stride": [2, 2], "padding": [0, 1, 1, 2]}
    norm = {name: name for name in ("gamma", "beta", "mean", "var")}
    nodes = [
        ("conv", "Conv", ["x"], {**conv, "groups": 2}, {"weight": "conv.weight", "bias": "conv.bias"}),
        ("norm", "BatchNorm", ["conv"], {"channels": 4, "eps": 1e-05}, norm),
        ("add", "Add", ["norm", "conv"], {}, {}),
        ("mean", "GlobalAvgPool", ["add"], {}, {}),
        ("flat", "Flatten", ["mean"], {}, {}),
        ("gemm", "Gemm", ["flat"], {"in_features": 4, "out_features": 10}, {"weight": "gemm.weight"}),
    ]
    top = {
        "name": "small",
        "dataset": "none",
        "input": {"name": "x", "shape": ["N", 2, 7, 8], "scale": 0.5, "mean": 0.25, "std": 2},
        "output": "gemm",
        "parameters": 36 + 4 + 8 + 40,
        "array_elements": 36 + 4 + 16 + 40,
        "reference_logits_first8": [[0.5] * 10] * 8,
        "nodes": [dict(zip(("name", "op", "inputs", "attrs", "params"), node, strict=True)) for node in nodes],
    }
    return top, arrays


def save(folder: Path, top: object, arrays: Arrays) -> Path:
    (folder / "net.json").write_text(json.dumps(top), encoding="utf-8")
    np.savez(folder / "net.npz", **arrays)  # type: ignore[arg-type]  # the stub takes every keyword for an option
    return folder / "net.json"


def load(folder: Path) -> Graph:
    return read_network(save(folder, *small()))


# ---- right files ----------------------------------------------------------------------------------------------


def test_the_small_network_is_read(tmp_path: Path) -> None:
    graph = load(tmp_path)
    assert graph.input == InputSpec("x", (2, 7, 8), 0.5, 0.25, 2.0)
    assert graph.shapes["conv"] == (4, 3, 5)
    assert graph.shapes["gemm"] == (10,)
    assert graph.node("conv").attrs["padding"] == (0, 1, 1, 2)
    assert graph.node("conv").attrs["dilation"] == (1, 1)
    assert graph.param(graph.node("gemm"), "weight").shape == (10, 4)
    assert [node.name for node in graph.linear_nodes] == ["conv", "gemm"]
    assert [node.name for node in graph.readers("conv")] == ["norm", "add"]
    assert graph.reference_logits is not None
    assert graph.reference_logits.shape == (8, 10)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    graph = load(tmp_path)
    write_network(graph, tmp_path / "again.json")
    again = read_network(tmp_path / "again")
    assert (again.name, again.input, again.output, again.nodes) == (graph.name, graph.input, graph.output, graph.nodes)
    assert (again.notes, again.shapes) == (graph.notes, graph.shapes)
    assert list(again.arrays) == list(graph.arrays)
    assert all(again.arrays[name].tobytes() == array.tobytes() for name, array in graph.arrays.items())
    assert again.reference_logits is not None
    assert graph.reference_logits is not None
    assert again.reference_logits.tobytes() == graph.reference_logits.tobytes()


def test_equal_networks_give_equal_bytes_and_no_other_files(tmp_path: Path) -> None:
    graph = load(tmp_path)
    for name in ("one", "two", "two"):
        write_network(graph, tmp_path / name)
    for ending in ("json", "npz"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{stem}.{ending}" for stem in ("net", "one", "two") for ending in ("json", "npz")}


def test_any_array_name_can_be_written(tmp_path: Path) -> None:
    node = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "file"})
    write_network(Graph("g", InputSpec("x", (1,)), "y", (node,), {"file": f32([[3]])}), tmp_path / "g")
    assert read_network(tmp_path / "g").arrays["file"].tolist() == [[3]]


def test_writing_where_one_cannot_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent/net\.npz"):
        write_network(load(tmp_path), tmp_path / "absent" / "net")


def test_only_eight_reference_logits_fit_the_format(tmp_path: Path) -> None:
    graph = replace(load(tmp_path), reference_logits=np.zeros((3, 10), np.float32))
    with pytest.raises(ArgumentError, match="3 images"):
        write_network(graph, tmp_path / "three")


def test_half_precision_is_converted_safely(tmp_path: Path) -> None:
    top, arrays = small()
    arrays["gemm.weight"] = arrays["gemm.weight"].astype(np.float16)
    graph = read_network(save(tmp_path, top, arrays))
    assert graph.arrays["gemm.weight"].dtype == np.float32
    assert np.array_equal(graph.arrays["gemm.weight"], arrays["gemm.weight"].astype(np.float32))


def test_arrays_are_read_only_and_the_callers_stay_as_they_are(tmp_path: Path) -> None:
    weight = f32([[2]])
    node = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    graph = Graph("g", InputSpec("x", (1,)), "y", (node,), {"w": weight})
    with pytest.raises(ValueError, match="read-only"):
        graph.arrays["w"][:] = 0
    assert weight.flags.writeable


def test_replaced_arrays_change_the_function_and_drop_what_was_measured(tmp_path: Path) -> None:
    graph = load(tmp_path)
    silent = graph.replace_arrays({"gemm.weight": np.zeros((10, 4), np.float32)})
    assert np.array_equal(forward(silent, np.ones((1, 2, 7, 8))), np.zeros((1, 10)))
    assert silent.reference_logits is None
    with pytest.raises(ArgumentError, match="array nothing"):
        graph.replace_arrays({"nothing": np.zeros(1, np.float32)})
    with pytest.raises(ArgumentError, match=r"shape \(4, 10\)"):
        graph.replace_arrays({"gemm.weight": np.zeros((4, 10), np.float32)})


def test_unknown_names_are_argument_errors(tmp_path: Path) -> None:
    graph = load(tmp_path)
    with pytest.raises(ArgumentError, match=r"'nothing'.*conv"):
        graph.node("nothing")
    with pytest.raises(ArgumentError, match=r"'bias'.*weight"):
        graph.param(graph.node("gemm"), "bias")


# ---- corrupted files ------------------------------------------------------------------------------------------


def node(index: int, **changes: Any) -> Callable[[Top, Arrays], object]:
    return lambda top, arrays: top["nodes"][index].update(changes)


def attr(index: int, **changes: Any) -> Callable[[Top, Arrays], object]:
    return lambda top, arrays: top["nodes"][index]["attrs"].update(changes)


def entry(**changes: Any) -> Callable[[Top, Arrays], object]:
    return lambda top, arrays: top.update(changes)


def array(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Top, Arrays], object]:
    return lambda top, arrays: arrays.update({name: change(arrays[name])})


def spec(**changes: Any) -> Callable[[Top, Arrays], object]:
    return lambda top, arrays: top["input"].update(changes)


def with_first(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda a: np.concatenate([[value], a[1:]]).astype(a.dtype)


CORRUPTIONS: dict[str, tuple[Callable[[Top, Arrays], object], str]] = {
    "unknown op": (node(2, op="Sub"), "op 'Sub'.*should be one of Conv"),
    "unknown attribute": (attr(2, broadcast=1), "attribute broadcast.*node add"),
    "missing attribute": (lambda top, arrays: top["nodes"][0]["attrs"].pop("kernel"), "no attribute kernel.*node conv"),
    "attribute of a wrong type": (attr(0, groups="2"), "groups='2'"),
    "attribute out of range": (attr(0, stride=[0, 1]), r"stride=\[0, 1\]"),
    "gigantic padding": (attr(0, padding=[2**30, 2**30]), "elements.*node conv"),
    "attribute beyond float": (attr(1, eps=10**400), "attribute eps"),
    "unknown param": (lambda top, arrays: top["nodes"][5]["params"].update(scale="gamma"), "param 'scale'"),
    "missing param": (lambda top, arrays: top["nodes"][5]["params"].clear(), "no param 'weight'.*node gemm"),
    "param that is no text": (lambda top, arrays: top["nodes"][5]["params"].update(weight=3), "3 as a name"),
    "missing array": (lambda top, arrays: arrays.pop("conv.bias"), "'conv.bias', which is missing"),
    "unused array": (lambda top, arrays: arrays.update(spare=np.ones(1, np.float32)), "spare.*used by a node"),
    "array of a wrong shape": (array("gemm.weight", np.transpose), r"weight of shape \(4, 10\).*\(10, 4\)"),
    "array of a wider type": (array("gemm.weight", lambda a: a.astype(np.float64)), "float64.*gemm.weight"),
    "array of booleans": (array("gemm.weight", lambda a: a > 0), "bool.*gemm.weight"),
    "array of objects": (array("gemm.weight", lambda a: a.astype(object)), "plain arrays"),
    "NaN in an array": (array("conv.bias", with_first(np.nan)), "NaN.*conv.bias"),
    "infinity in an array": (array("beta", with_first(-np.inf)), "infinity.*beta"),
    "negative variance": (array("var", with_first(-1)), "var with values below 0"),
    "input used before it is defined": (node(2, inputs=["norm", "gemm"]), "input 'gemm'.*earlier node"),
    "input that is no text": (node(2, inputs=["norm", 1]), "1 as a name"),
    "no inputs": (node(2, inputs=[]), "0 inputs"),
    "node named twice": (node(1, name="conv"), "'conv' a second time"),
    "node named as the input": (node(0, name="x"), "'x' a second time"),
    "node that is no object": (lambda top, arrays: top["nodes"].append("Relu"), r"str.*nodes\[6\]"),
    "node with a field too many": (node(2, kind="Add"), "field 'kind'"),
    "node without op": (lambda top, arrays: top["nodes"][2].pop("op"), "no field 'op'"),
    "shapes that do not meet": (attr(5, in_features=5), r"in_features.*node gemm"),
    "add of unequal shapes": (node(2, inputs=["conv", "x"]), r"\(4, 3, 5\) and \(2, 7, 8\)"),
    "missing output": (lambda top, arrays: top.pop("output"), "no field 'output'"),
    "unknown output": (entry(output="softmax"), "output='softmax'"),
    "output of a wrong type": (entry(output=["gemm"]), "output of type list"),
    "unknown field": (entry(ouput="gemm"), "field 'ouput'"),
    "nodes that are no list": (entry(nodes={}), "nodes of type dict"),
    "input shape without N": (spec(shape=[2, 7, 8]), r'"N"'),
    "input shape with 0": (spec(shape=["N", 0, 7, 8]), r"\(0, 7, 8\)"),
    "input shape with text": (spec(shape=["N", "2", 7, 8]), "input shape"),
    "input field unknown": (spec(layout="NCHW"), "field 'layout'"),
    "std of 0": (spec(std=0), "std=0"),
    "scale of a wrong type": (spec(scale=True), "scale of type bool"),
    "mean that is infinite": (spec(mean=float("inf")), "Infinity"),
    "mean beyond float": (spec(mean=10**400), "below 2.63"),
    "wrong count of parameters": (entry(parameters=87), "parameters=87.*88"),
    "wrong count of elements": (entry(array_elements=97), "array_elements=97.*96"),
    "reference logits of too few images": (entry(reference_logits_first8=[[0.0] * 10]), "8 rows"),
    "reference logits of too few classes": (entry(reference_logits_first8=[[0.0] * 9] * 8), r"\(8, 9\)"),
    "reference logits with text": (entry(reference_logits_first8=[["a"] * 10] * 8), "8 rows of as many numbers"),
    "reference logits beyond float32": (entry(reference_logits_first8=[[1e300] * 10] * 8), "8 rows of as many numbers"),
}


@pytest.mark.parametrize(("corrupt", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_a_corrupted_network_is_refused(corrupt: Callable[[Top, Arrays], object], message: str, tmp_path: Path) -> None:
    top, arrays = small()
    corrupt(top, arrays)
    path = save(tmp_path, top, arrays)
    with pytest.raises(FileError, match=message) as caught:
        read_network(path)
    assert "net." in str(caught.value)  # it names the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("[1]", "list, but should be an object"),
        ('{"name": "a"', "JSON"),
        ('{"name": "a", "name": "b"}', "given twice"),
        ('{"name": NaN}', "NaN, which is not JSON"),
        ("[" * 100_000, "JSON"),
        ("\udcff", "JSON"),
        ('{"name": ' + "9" * 5000 + "}", "JSON"),
    ],
    ids=["empty", "no object", "cut", "field twice", "NaN", "deep", "not UTF-8", "number of 5000 digits"],
)
def test_a_text_that_is_not_the_format_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = save(tmp_path, *small())
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FileError, match=message):
        read_network(path)


def damaged(content: bytes) -> list[bytes]:
    middle = len(content) // 3
    flipped = content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :]
    return [b"", b"no archive", content[: len(content) // 2], content[:-3], flipped]


@pytest.mark.parametrize("kind", range(5), ids=["empty", "text", "half", "last bytes gone", "one byte flipped"])
def test_a_damaged_archive_is_refused(kind: int, tmp_path: Path) -> None:
    path = save(tmp_path, *small())
    archive = path.with_suffix(".npz")
    archive.write_bytes(damaged(archive.read_bytes())[kind])
    with pytest.raises(FileError, match=re.escape(str(archive))):
        read_network(path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = save(tmp_path, *small())
    with open(path.with_suffix(".npz"), "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(FileError, match="a single array"):
        read_network(path)


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_a_missing_file_is_a_file_error(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path, *small())
    path.with_suffix(f".{ending}").unlink()
    with pytest.raises(FileError, match=rf"No such file.*net\.{ending}"):
        read_network(path)
