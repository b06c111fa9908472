"""The floors of the house: imports go downwards only, in no cycle, and third parties stay in their rooms."""

import ast
import sys
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "refquant"

FLOORS = [
    {"errors"},
    {"arith"},
    {"quant"},
    {"solve", "net"},
    {"zoo", "theory"},
    {"ptq"},
    {"conform"},
    {"interop", "report"},
    {"cli"},
    {"__main__"},
    {"refquant"},  # the roof
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

# Third party: the modules, or packages with all below them, that may import it. COMPUTED is a name found at run time.
COMPUTED = "import_module(...)"
ROOMS = {
    "numpy": ["refquant"],
    "scipy": ["refquant"],
    "threadpoolctl": ["refquant.arith.blas"],
    "matplotlib": ["refquant.report"],
    "tqdm": ["refquant.cli", "refquant.zoo.train"],
    "hypothesis": ["refquant.conform.strategies", "refquant.conform.plugin"],
    "pytest": ["refquant.conform.strategies", "refquant.conform.plugin"],
    "onnx": ["refquant.interop.onnx"],
    "dask": ["refquant.cli"],
    "distributed": ["refquant.cli"],
}


def room_of(module: str) -> str:
    return [*module.split("."), "refquant"][1] if module != "refquant" else "refquant"


def faults(imports: Mapping[str, Collection[str]]) -> list[str]:
    """One sentence for each broken rule in {module: names it imports}."""
    found = []
    for module, names in imports.items():
        if room_of(module) not in FLOOR:
            found.append(f"{module} has no floor")
            continue
        for name in sorted(names):
            top = name.partition(".")[0]
            if top == "refquant":
                here, there = room_of(module), room_of(name)
                if here != there and FLOOR.get(there, len(FLOORS)) >= FLOOR[here]:
                    way = "sideways" if FLOOR.get(there) == FLOOR[here] else "up"
                    found.append(f"{module} imports {way}: {name}")
            elif top not in sys.stdlib_module_names and not any(
                f"{module}.".startswith(f"{room}.") for room in ROOMS.get(top, [])
            ):
                found.append(f"{module} may not import {name}")
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found.append("cycle: " + " <- ".join(error.args[1]))
    return found


def imports_of(source: str, module: str, known: Collection[str], is_package: bool = False) -> set[str]:
    """Every module that `source` names in an import, at the top or inside a function, for types or at run time."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
            base = ".".join([*(parents if node.level else []), *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name if name in known else base for name in inner}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            names.add(str(first.value) if isinstance(first, ast.Constant) else COMPUTED)
    return names


def imports_in(package: Path) -> dict[str, set[str]]:
    """{module: names it imports} for every file of the package."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        module: imports_of(path.read_text(encoding="utf-8"), module, files, path.name == "__init__.py")
        for module, path in files.items()
    }


def test_the_house_stands() -> None:
    imports = imports_in(PACKAGE)
    assert imports["refquant"] >= {"refquant.errors", COMPUTED}  # the roof's table: the reader reads
    imports["refquant"].discard(COMPUTED)  # which is what loads names on first use
    assert faults(imports) == []


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        ("refquant.arith.exact", "refquant.quant.spec", "refquant.arith.exact imports up: refquant.quant.spec"),
        ("refquant.quant.spec", "refquant", "refquant.quant.spec imports up: refquant"),
        ("refquant.net.graph", "refquant.solve", "refquant.net.graph imports sideways: refquant.solve"),
        ("refquant.theory.bounds", "refquant.ptq.lapq", "refquant.theory.bounds imports up: refquant.ptq.lapq"),
        ("refquant.cli", "refquant.cellar", "refquant.cli imports up: refquant.cellar"),
        ("refquant.cellar", "numpy", "refquant.cellar has no floor"),
        ("refquant.ptq.lapq", "matplotlib.pyplot", "refquant.ptq.lapq may not import matplotlib.pyplot"),
        ("refquant.arith.exact", "threadpoolctl", "refquant.arith.exact may not import threadpoolctl"),
        ("refquant.net.forward", COMPUTED, f"refquant.net.forward may not import {COMPUTED}"),
        ("refquant.cli", "torch", "refquant.cli may not import torch"),
    ],
)
def test_a_planted_import_is_reported(module: str, name: str, fault: str) -> None:
    assert faults({module: {name}}) == [fault]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("refquant.ptq.lapq", "refquant.theory.bounds"),
        ("refquant.solve.scale", "refquant.solve.sweep"),
        ("refquant.arith.blas", "threadpoolctl"),
        ("refquant.report.plots", "matplotlib.pyplot"),
        ("refquant.cli", "dask.distributed"),
    ],
)
def test_a_lawful_import_is_not_reported(module: str, name: str) -> None:
    assert faults({module: {name}}) == []


def test_a_planted_cycle_is_reported() -> None:
    ring = {"refquant.quant.a": {"refquant.quant.b"}, "refquant.quant.b": {"refquant.quant.a"}}
    assert [fault.partition(":")[0] for fault in faults(ring)] == ["cycle"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..errors import complaint", {"refquant.errors"}),
        ("from .. import errors", {"refquant.errors"}),
        ("from . import spec, thing", {"refquant.quant.spec", "refquant.quant"}),
        ("from .spec import QuantSpec", {"refquant.quant.spec"}),
        ("from refquant.quant import spec", {"refquant.quant.spec"}),
        ("def f():\n    import matplotlib.pyplot as plt", {"matplotlib.pyplot"}),
        ("import importlib\nimportlib.import_module('onnx')", {"importlib", "onnx"}),
        ("__import__(name)", {COMPUTED}),
    ],
)
def test_the_reader_finds_every_import(source: str, expected: set[str]) -> None:
    known = {"refquant", "refquant.errors", "refquant.quant", "refquant.quant.spec"}
    assert imports_of(source, "refquant.quant.quantizer", known) == expected
    assert imports_of("from .spec import QuantSpec", "refquant.quant", known, is_package=True) == {
        "refquant.quant.spec"
    }
    assert imports_of("from .. import errors", "refquant.quant", known, is_package=True) == {"refquant.errors"}
