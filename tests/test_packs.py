"""Golden packs: what is in level 1, that it is reproduced byte for byte, and that nothing damaged is read."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

import refquant as rq
from refquant.conform.cases import FAMILIES
from refquant.conform.judge import faults
from refquant.conform.networks import run_network
from refquant.conform.operations import OPERATIONS, Request, evaluate
from refquant.conform.pack_write import write_pack
from refquant.conform.packs import Asked, Pack, level_one, read_pack
from refquant.conform.requests import PACK_PROFILES
from refquant.quant.ranges import range_parameters

LEVEL1 = Path(str(files("refquant.conform") / "level1"))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def all_asked(pack: Pack) -> list[tuple[str, Asked]]:
    return [(f"{test.id} {asked.profiles[0]}", asked) for test in pack.tests for asked in test.asked]


# ---- what is in it --------------------------------------------------------------------------------------------


def test_level_one_has_every_operation_family_and_profile(pack: Pack) -> None:
    asked = all_asked(pack)
    assert {a.request.op for _, a in asked} == set(OPERATIONS)
    assert set(pack.notes) == {test.family for test in pack.tests} == set(FAMILIES)
    assert set(pack.profiles) == set(PACK_PROFILES)
    assert len(pack.tests) >= 600
    assert len(asked) >= 2900
    assert all(a.request.inputs and a.expected.outputs for _, a in asked)


def test_files_fit_their_schemas() -> None:
    schema = {name: json.loads((LEVEL1.parent / f"{name}.schema.json").read_text()) for name in ("pack", "manifest")}
    manifest = json.loads((LEVEL1 / "manifest.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema["pack"])
    jsonschema.validate(manifest, schema["manifest"])
    validator = jsonschema.Draft202012Validator(schema["pack"])
    for name in manifest["files"]:
        data = json.loads((LEVEL1 / name).read_text())
        validator.validate(data)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**data, "extra": 1})


@pytest.mark.guarantee(
    "Level 1 is a function of the cases and the definitions alone: written anew it is the same bytes.", "exhaustive", ""
)
def test_level_one_is_reproduced_byte_for_byte(pack: Pack, tmp_path: Path) -> None:
    write_pack(tmp_path, kills={flag: note["kills"] for flag, note in pack.notes.items()})
    names = sorted(p.name for p in LEVEL1.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    different = [name for name in names if (tmp_path / name).read_bytes() != (LEVEL1 / name).read_bytes()]
    assert not different


# ---- two independent ways -------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Every golden answer of level 1, made by definitions on Fractions and integers, is also the pipelines'.",
    "exhaustive",
    "Q1-Q6, D1-D2, R, M1-M2, N1-N5",
)
def test_pipelines_give_the_golden_answers(pack: Pack) -> None:
    wrong = {
        name: found for name, a in all_asked(pack) if (found := faults(a.request, a.expected, evaluate(a.request)))
    }
    assert not wrong


def _element(f: Callable[..., Any], first: str, output: str) -> Callable[[Request], dict[str, Any]]:
    def run(r: Request) -> dict[str, Any]:
        more = {"dtype": r.options.get("dtype", "float32")} if output == "x" else {}
        return {output: f(r.inputs[first], r.inputs["scale"], r.inputs["zero_point"], spec=r.spec, **more)}

    return run


def _range(r: Request) -> dict[str, Any]:
    s, z = range_parameters(r.inputs["lo"], r.inputs["hi"], spec=r.spec, rule=r.options["rule"])
    return {"scale": np.asarray(s, np.float32), "zero_point": z}


def _requantize(r: Request) -> dict[str, Any]:
    if "multiplier" not in r.inputs or r.inputs["multiplier"].ndim:
        return {}
    i = r.integer
    return {
        "codes": rq.requantize(
            r.inputs["acc"], r.inputs["multiplier"], r.inputs["zero_point"], spec=r.spec, how=i.requantize
        )
    }


PUBLIC: Mapping[str, Callable[[Request], dict[str, Any]]] = {
    "quantize": _element(rq.quantize, "x", "codes"),
    "fake_quantize": _element(rq.fake_quantize, "x", "y"),
    "dequantize": _element(rq.dequantize, "codes", "x"),
    "range_parameters": _range,
    "requantize": _requantize,
    "network": lambda r: dict(run_network(r.options["network"], r.inputs, r.spec, r.integer)),
}


@pytest.mark.guarantee(
    "The public functions give the golden answers of level 1.", "exhaustive", "Q1-Q6, D1-D2, R, N1-N5"
)
def test_public_functions_give_the_golden_answers(pack: Pack) -> None:
    wrong, held = {}, 0
    for name, a in all_asked(pack):
        answer = PUBLIC[a.request.op](a.request) if a.request.op in PUBLIC else {}
        if answer:
            held += 1
            if found := faults(a.request, a.expected, answer):
                wrong[name] = found
    assert not wrong
    assert held > 2000


# ---- nothing damaged is read ----------------------------------------------------------------------------------


def _sealed(folder: Path) -> None:
    """A manifest that fits the files again, so that only what was planted is wrong."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"nan.json": dict(manifest["files"]["nan.json"])}
    manifest["files"]["nan.json"]["sha256"] = hashlib.sha256((folder / "nan.json").read_bytes()).hexdigest()
    manifest["count"] = manifest["files"]["nan.json"]["count"]
    manifest["others"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name in ("nan.json", "manifest.json"):
        shutil.copy(LEVEL1 / name, tmp_path / name)
    _sealed(tmp_path)
    assert read_pack(tmp_path).tests
    return tmp_path


def _first(data: dict[str, Any]) -> dict[str, Any]:
    return dict(data["tests"][0])


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda d: d.update(note="x"),
    "a missing field": lambda d: d.pop("why"),
    "another schema": lambda d: d.update(schema="refquant-pack-9"),
    "other semantics": lambda d: d.update(semantics="9"),
    "no tests": lambda d: d.update(tests=[], count=0),
    "a count that is off": lambda d: d.update(count=d["count"] + 1),
    "tests that are no list": lambda d: d.update(tests="all"),
    "an id twice": lambda d: d["tests"].__setitem__(1, d["tests"][0]),
    "an unknown field of a test": lambda d: d["tests"][0].update(skip=True),
    "an unknown operation": lambda d: d["tests"][0].update(op="quantise"),
    "no expected answers": lambda d: d["tests"][0].update(expected=[]),
    "no outputs": lambda d: d["tests"][0]["expected"][0].update(outputs={}),
    "semantics that are not in the file": lambda d: d["tests"][0]["expected"][0].update(profiles={"p": "0" * 12}),
    "semantics under another digest": lambda d: d["specs"].update({"0" * 12: next(iter(d["specs"].values()))}),
    "semantics that no spec has": lambda d: next(iter(d["specs"].values()))["spec"].update(bits=99),
    "a decimal float": lambda d: d["tests"][0]["inputs"]["x"].update(data=["1.5", "0x1p+0", "0x1p+0"]),
    "a float that float32 does not hold": lambda d: d["tests"][0]["inputs"]["scale"].update(data=["0x1.0000001p+0"]),
    "an integer that int32 does not hold": lambda d: d["tests"][0]["inputs"]["zero_point"].update(data=[2**40]),
    "a flag for an integer": lambda d: d["tests"][0]["inputs"]["zero_point"].update(data=[True]),
    "too few entries": lambda d: d["tests"][0]["inputs"]["x"].update(data=["0x1p+0", "0x1p+0"]),
    "a negative shape": lambda d: d["tests"][0]["inputs"]["x"].update(shape=[-3]),
    "a huge shape": lambda d: d["tests"][0]["inputs"]["x"].update(shape=[2**40], data=["0x1p+0"]),
    "an unknown dtype": lambda d: d["tests"][0]["inputs"]["x"].update(dtype="float8"),
    "an array beside that is not there": lambda d: d["tests"][0]["inputs"].update(
        x={"dtype": "float32", "shape": [3], "npz": "a0"}
    ),
    "an option that is an object": lambda d: d["tests"][0]["options"].update(a={}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_family_is_refused(small: Path, damage: str) -> None:
    data = json.loads((small / "nan.json").read_text())
    DAMAGES[damage](data)
    (small / "nan.json").write_text(json.dumps(data))
    _sealed(small)
    with pytest.raises(rq.FileError):
        read_pack(small)


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / "manifest.json").read_text())
        change(data)
        (folder / "manifest.json").write_text(json.dumps(data))

    return damage


FOLDERS: dict[str, Callable[[Path], object]] = {
    "a byte changed": lambda f: (f / "nan.json").write_bytes((f / "nan.json").read_bytes() + b" "),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "no family": lambda f: (f / "nan.json").unlink(),
    "not JSON": lambda f: (f / "manifest.json").write_text("{"),
    "an unknown field": _manifest(lambda d: d.update(note=1)),
    "no files": _manifest(lambda d: d.update(files={}, count=0)),
    "another count": _manifest(lambda d: d.update(count=d["count"] - 1)),
    "another schema": _manifest(lambda d: d.update(schema="x")),
    "a file elsewhere": _manifest(lambda d: d["files"].update({"../nan.json": d["files"].pop("nan.json")})),
    "a family without tests": _manifest(lambda d: d["files"]["nan.json"].update(count=0)),
}


@pytest.mark.parametrize("damage", FOLDERS)
def test_a_damaged_folder_is_refused(small: Path, damage: str) -> None:
    FOLDERS[damage](small)
    with pytest.raises(rq.FileError):
        read_pack(small)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(rq.FileError):
        write_pack(tmp_path / "file")


def test_an_unknown_profile_is_an_error(pack: Pack) -> None:
    with pytest.raises(rq.ArgumentError, match="onnx@21"):
        list(pack.requests("onnx@99"))
