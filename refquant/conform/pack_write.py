"""Writing golden packs: every family's cases, answered by definition under every profile that speaks of them.

A folder holds one JSON file a family (schema `pack.schema.json`); long arrays in an .npz beside; the graphs of the
networks; and `manifest.json` with the SHA-256 of every file and the number of tests.  Same level, same bytes.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, CodeOverflowError, FileError, NotANumberError, complaint
from ..net.files import graph_to_json
from ..net.fold import fold_batch_norm
from ..zoo import NETWORKS, load_network
from .case import Case
from .cases import FAMILIES, cases
from .golden import golden, slack_of
from .judge import Expected
from .operations import SEMANTICS
from .packs import MANIFEST_SCHEMA, SCHEMA, Asked
from .requests import SPOKEN, request_of
from .wire import array_to_json, digest_of, semantics_to_json

__all__ = ["family_to_json", "write_pack"]

Json = Any
Array = NDArray[Any]
Kills = Mapping[str, Mapping[str, list[str]]]
"""family -> operation -> the deviations that the family's tests notice (`mutants.kills_by_family`)."""

LONG = 4096
"""Arrays of more elements lie in the .npz beside, unless all their elements are one."""


# ---- answers --------------------------------------------------------------------------------------------------


def answers(case: Case) -> list[Asked]:
    """The case under every profile that speaks of it; profiles of equal semantics together.

    A profile that refuses the case (a NaN, a reciprocal that is infinite) has no answer to hold a backend to.
    """
    found: dict[str, Asked] = {}
    for name in SPOKEN[case.op]:
        request = request_of(case, name)
        if request is None:
            continue
        key = digest_of(semantics_to_json(request.spec, request.integer))
        if key in found:
            known = found[key]
            found[key] = Asked(known.request, known.expected, (*known.profiles, name))
            continue
        try:
            found[key] = Asked(request, Expected(golden(request), slack_of(request)), (name,))
        except (ArgumentError, NotANumberError, CodeOverflowError):
            continue
    return list(found.values())


# ---- a family as JSON -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _File:
    """A family's file in the making: its table of semantics, and the arrays that are too long for JSON."""

    specs: dict[str, Json] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)

    def array(self, value: Any) -> dict[str, Any]:
        """As JSON, or as a reference to an array beside."""
        a = np.asarray(value)
        if a.size <= LONG or np.all(a == a.flat[0]):
            return array_to_json(a)
        held = a.astype(array_to_json(a.ravel()[:1])["dtype"]) if a.dtype == np.int64 else a
        name = next((n for n, b in self.arrays.items() if b.dtype == held.dtype and np.array_equal(b, held)), None)
        name = name or f"a{len(self.arrays)}"
        self.arrays[name] = held
        return {"dtype": held.dtype.name, "shape": list(a.shape), "npz": name}

    def outputs(self, expected: Expected) -> dict[str, Any]:
        """Expected outputs, with what sums may be off."""
        found: dict[str, Any] = {}
        for name, a in expected.outputs.items():
            found[name] = self.array(a)
            if name in expected.slack:
                magnitude, n = expected.slack[name]
                found[name] |= {"magnitude": array_to_json(magnitude), "operations": n}
        return found


def _test(name: str, case: Case, file: _File) -> dict[str, Any]:
    answered = answers(case)
    if not answered:
        raise ArgumentError(complaint("no answer", "that of a profile", f"case {name}"))
    groups: list[dict[str, Any]] = []
    for a in answered:
        semantics = semantics_to_json(a.request.spec, a.request.integer)
        key, outputs = digest_of(semantics), file.outputs(a.expected)
        file.specs[key] = semantics
        same = next((g for g in groups if g["outputs"] == outputs), None)
        if same is None:
            groups.append(same := {"profiles": {}, "outputs": outputs})
        same["profiles"] |= dict.fromkeys(a.profiles, key)
    return {
        "id": name,
        "op": case.op,
        "comment": case.comment,
        "options": {n: list(v) if isinstance(v, tuple) else v for n, v in case.options.items()},
        "inputs": {n: file.array(v) for n, v in case.inputs.items()},
        "expected": groups,
    }


def family_to_json(flag: str, level: int = 1, kills: Kills | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
    """The file of a family as an object, and its long arrays.

    >>> family_to_json("nan")[0]["count"] > 0
    True
    """
    family, file = FAMILIES[flag], _File()
    tests = [_test(f"{flag}-{n:03d}", case, file) for n, case in enumerate(cases(flag, level))]
    content = {
        "schema": SCHEMA,
        "semantics": SEMANTICS,
        "level": level,
        "family": flag,
        "kind": family.kind,
        "why": family.why,
        "effect": family.effect,
        "kills": {op: list(names) for op, names in sorted((kills or {}).get(flag, {}).items())},
        "specs": dict(sorted(file.specs.items())),
        "count": len(tests),
        "tests": tests,
    }
    return content, file.arrays


# ---- files ----------------------------------------------------------------------------------------------------


def _lines(data: Mapping[str, Any]) -> bytes:
    """JSON with a line for each field, and for each test."""
    rows = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in data.items() if name != "tests"]
    tests = ",\n".join("  " + json.dumps(test) for test in data["tests"])
    return ("{\n" + ",\n".join(rows) + ',\n "tests": [\n' + tests + "\n ]\n}\n").encode()


def _npz(arrays: Mapping[str, Array]) -> bytes:
    """An .npz without dates and uncompressed: the same arrays give the same bytes anywhere."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return made.getvalue()


def _write(path: Path, content: bytes) -> str:
    """Written beside and renamed; the SHA-256."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise FileError(complaint(f"{error.strerror or error}", "a file that can be written", str(path))) from None
    finally:
        beside.unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


def write_pack(
    folder: Path, *, level: int = 1, kills: Kills | None = None, progress: Callable[[int], object] | None = None
) -> int:
    """Write all families into a folder, the manifest last; the number of tests.

    level: 1 (verified in seconds) or 2 (minutes).  kills: what each family notices, for the notes.  progress: called
    with 1 after each family.  An older manifest goes first, so that a folder is whole or has none.

    Raises FileError for a folder that cannot be written.
    """
    manifest: dict[str, Any] = {"schema": MANIFEST_SCHEMA, "semantics": SEMANTICS, "level": level}
    count, listed, others = 0, dict[str, Any](), dict[str, str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)
    except OSError as error:
        raise FileError(complaint(f"{error.strerror or error}", "a folder that can be written", str(folder))) from None
    for flag in FAMILIES:
        data, arrays = family_to_json(flag, level, kills)
        listed[f"{flag}.json"] = {"sha256": _write(folder / f"{flag}.json", _lines(data)), "count": data["count"]}
        count += data["count"]
        if arrays:
            others[f"{flag}.npz"] = _write(folder / f"{flag}.npz", _npz(arrays))
        if progress is not None:
            progress(1)
    for network in NETWORKS:
        graph = graph_to_json(fold_batch_norm(load_network(network)))
        content = (json.dumps(graph, indent=1) + "\n").encode()
        others[f"graph-{network}.json"] = _write(folder / f"graph-{network}.json", content)
    manifest |= {"count": count, "files": listed, "others": others}
    _write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return count
