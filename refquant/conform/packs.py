"""Golden packs: cases with the answers of every profile that speaks of them, in files that anyone can read.

Reading trusts nothing: unknown fields, wrong digests, other counts and no tests at all are errors.  Writing them is
`pack_write`'s.
"""

import hashlib
import io
import json
import os
import reprlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, FileError, complaint
from .judge import Expected
from .operations import OPERATIONS, SEMANTICS, Request
from .wire import array_from_json, digest_of, exactly, options_from_json, semantics_from_json

__all__ = ["MANIFEST_SCHEMA", "SCHEMA", "Asked", "Pack", "PackTest", "level_one", "read_pack"]

SCHEMA, MANIFEST_SCHEMA = "refquant-pack-1", "refquant-manifest-1"
Json = Any
Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Asked:
    """A request under some profiles' common semantics, with its answer."""

    request: Request
    expected: Expected
    profiles: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PackTest:
    """One case of a family, once for each of the semantics that profiles ask it under."""

    id: str
    family: str
    comment: str
    asked: tuple[Asked, ...]

    def under(self, profile: str) -> Asked | None:
        """The request and answer of one profile, None where it does not speak of the case."""
        return next((a for a in self.asked if profile in a.profiles), None)


@dataclass(frozen=True, eq=False)
class Pack:
    """The tests of a folder; notes: of each family its kind, why it is hard, the effect of failing, what it kills."""

    level: int
    tests: tuple[PackTest, ...]
    notes: Mapping[str, Mapping[str, Any]]

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles that any test speaks of."""
        return tuple(sorted({name for test in self.tests for asked in test.asked for name in asked.profiles}))

    def requests(self, profile: str) -> Iterator[tuple[PackTest, Asked]]:
        """Every test that a profile speaks of; raises ArgumentError where there is none."""
        if profile not in self.profiles:
            raise ArgumentError(complaint(f"profile {profile!r}", f"one of {', '.join(self.profiles)}", "pack"))
        yield from ((test, asked) for test in self.tests if (asked := test.under(profile)) is not None)


# ---- a family -------------------------------------------------------------------------------------------------

_ARRAY = ("dtype", "shape", "data")
_TEST = ("id", "op", "comment", "options", "inputs", "expected")
_FILE = ("schema", "semantics", "level", "family", "kind", "why", "effect", "kills", "specs", "count", "tests")


def _json(content: bytes, where: str) -> Json:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileError(complaint(f"{error}", "JSON", where)) from None


def _array(data: Json, arrays: Arrays, where: str) -> Array:
    """An array of the JSON, or the one beside that it refers to."""
    if not (isinstance(data, dict) and "npz" in data):
        return array_from_json(data, where)
    fields = exactly(data, ("dtype", "shape", "npz"), where)
    found = arrays.get(str(fields["npz"]))
    if found is None or (found.dtype.name, list(found.shape)) != (fields["dtype"], fields["shape"]):
        got = "none" if found is None else f"{found.dtype} of shape {found.shape}"
        raise FileError(complaint(got, f"{fields['dtype']} of shape {fields['shape']} in the .npz", where))
    return found


def _objects(data: Json, where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        raise FileError(complaint("no object with fields", "one", where))
    return data


def _text(data: Json, where: str) -> str:
    if not isinstance(data, str):
        raise FileError(complaint(reprlib.repr(data), "a text", where))
    return data


def _expected(data: Json, arrays: Arrays, where: str) -> Expected:
    outputs, slack = {}, {}
    for name, a in _objects(data, where).items():
        at = f"{where}, {name}"
        if not (isinstance(a, dict) and "operations" in a):
            outputs[name] = _array(a, arrays, at)
            continue
        fields = exactly(a, (*_ARRAY, "magnitude", "operations"), at)
        outputs[name] = array_from_json({n: fields[n] for n in _ARRAY}, at)
        n = fields["operations"]
        if type(n) is not int or not 0 <= n <= 2**20:
            raise FileError(complaint(f"operations {n!r}", "a count", at))
        slack[name] = (array_from_json(fields["magnitude"], at), n)
    return Expected(outputs, slack)


def _read_test(data: Json, specs: Mapping[str, tuple[Any, Any]], family: str, arrays: Arrays, where: str) -> PackTest:
    test = exactly(data, _TEST, where)
    where, op = f"{where}, {test['id']}", test["op"]
    if not (isinstance(op, str) and op in OPERATIONS):
        raise FileError(complaint(f"op {op!r}", f"one of {', '.join(OPERATIONS)}", where))
    inputs = {str(n): _array(a, arrays, f"{where}, {n}") for n, a in _objects(test["inputs"], where).items()}
    for a in inputs.values():
        a.setflags(write=False)  # all who are asked get these, and no backend may change them
    options = options_from_json(test["options"], where)
    asked: list[Asked] = []
    for group in test["expected"] if isinstance(test["expected"], list) else ():
        fields = exactly(group, ("profiles", "outputs"), where)
        expected, named = _expected(fields["outputs"], arrays, where), _objects(fields["profiles"], where)
        for key in dict.fromkeys(_text(v, where) for v in named.values()):
            if key not in specs:
                raise FileError(complaint(f"semantics {key!r}", "one of the file's specs", where))
            names = tuple(name for name, k in named.items() if k == key)
            asked.append(Asked(Request(op, specs[key][0], inputs, options, specs[key][1]), expected, names))
    if not asked:
        raise FileError(complaint("no expected outputs", "those of a profile at least", where))
    return PackTest(_text(test["id"], where), family, _text(test["comment"], where), tuple(asked))


def _read_family(content: bytes, arrays: Arrays, where: str) -> tuple[list[PackTest], dict[str, Any]]:
    data = exactly(_json(content, where), _FILE, where)
    if (data["schema"], data["semantics"]) != (SCHEMA, SEMANTICS):
        got = f"schema {data['schema']!r}, semantics {data['semantics']!r}"
        raise FileError(complaint(got, f"{SCHEMA!r}, {SEMANTICS!r}", where))
    specs = {}
    for key, value in _objects(data["specs"], where).items():
        specs[key] = semantics_from_json(value, where)
        if digest_of(value) != key:
            raise FileError(complaint(f"specs under {key!r}", digest_of(value), where))
    if not isinstance(data["tests"], list):
        raise FileError(complaint("tests that are no list", "a list", where))
    tests = [_read_test(t, specs, _text(data["family"], where), arrays, where) for t in data["tests"]]
    if not tests or len(tests) != data["count"]:
        raise FileError(complaint(f"{len(tests)} tests", f"{data['count']}, and at least one", where))
    if len({t.id for t in tests}) < len(tests):
        raise FileError(complaint("a test's id twice", "ids that differ", where))
    return tests, {n: data[n] for n in ("kind", "why", "effect", "kills")}


# ---- a folder -------------------------------------------------------------------------------------------------


def _arrays(content: bytes, where: str) -> dict[str, Array]:
    """The arrays of an .npz, never unpickled."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(complaint(f"{error}", "an .npz of plain arrays", where)) from None


def read_pack(folder: Any) -> Pack:
    """The pack in a folder (a path, or a resource of a package), checked against its manifest.

    Raises FileError where a file is missing, is not what the manifest says or not of the schema, and for no tests.
    """
    folder = Path(folder) if isinstance(folder, (str, os.PathLike)) else folder

    def content(name: Json) -> bytes:
        if not isinstance(name, str) or Path(name).name != name:
            raise FileError(complaint(f"file {name!r}", "a plain name", "manifest"))
        try:
            return bytes((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            got = f"{getattr(error, 'strerror', None) or error}"
            raise FileError(complaint(got, f"a readable {name!r}", str(folder), "write it: refquant pack")) from None

    def checked(name: Json, sha: Json) -> bytes:
        data = content(name)
        if (got := hashlib.sha256(data).hexdigest()) != sha:
            raise FileError(complaint(f"SHA-256 {got}", f"{sha}", str(name), "write the pack again: refquant pack"))
        return data

    fields = ("schema", "semantics", "level", "count", "files", "others")
    manifest = exactly(_json(content("manifest.json"), "manifest.json"), fields, "manifest.json")
    if (manifest["schema"], manifest["semantics"]) != (MANIFEST_SCHEMA, SEMANTICS):
        got = f"schema {manifest['schema']!r}, semantics {manifest['semantics']!r}"
        raise FileError(complaint(got, f"{MANIFEST_SCHEMA!r}, {SEMANTICS!r}", "manifest.json"))
    tests: list[PackTest] = []
    notes: dict[str, Mapping[str, Any]] = {}
    if not isinstance(manifest["others"], dict) or manifest["level"] not in (1, 2):
        got = f"others {reprlib.repr(manifest['others'])}, level {reprlib.repr(manifest['level'])}"
        raise FileError(complaint(got, "digests by file, 1 or 2", "manifest.json"))
    others = {name: checked(name, sha) for name, sha in manifest["others"].items()}
    for name, row in _objects(manifest["files"], "manifest.json").items():
        exactly(row, ("sha256", "count"), f"manifest.json, {name}")
        beside = name.removesuffix(".json") + ".npz"
        arrays = _arrays(others[beside], beside) if beside in others else {}
        found, note = _read_family(checked(name, row["sha256"]), arrays, name)
        if len(found) != row["count"]:
            raise FileError(complaint(f"{len(found)} tests", f"{row['count']}", name))
        tests += found
        notes[found[0].family] = note
    if not tests or len(tests) != manifest["count"] or len({test.id for test in tests}) < len(tests):
        got, should = f"{len(tests)} tests", f"{manifest['count']}, and at least one, of different ids"
        raise FileError(complaint(got, should, "manifest.json"))
    return Pack(int(manifest["level"]), tuple(tests), notes)


def level_one() -> Pack:
    """The pack inside refquant."""
    return read_pack(files(__package__) / "level1")
