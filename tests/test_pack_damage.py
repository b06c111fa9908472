"""Files damaged at any place: a pack, a request or an answer is read, or refused as what it is, and nothing else."""

import hashlib
import json
import random
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import refquant as rq
from refquant.conform.packs import level_one, read_pack
from refquant.conform.protocol import read_reply
from refquant.conform.wire import request_from_json, request_to_json

LEVEL1 = Path(str(files("refquant.conform") / "level1"))
STRANGE: list[Any] = [
    *[None, True, 1, -1, 1.5, 2**70, float("nan"), "", "x", "nan", "0x1p+9999", "\0"],
    *[[], [1], [[]], [None], {}, {"a": 1}, {"": []}],
]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values, of lists those of the first few."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data[:3]) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(data: Any, rng: random.Random) -> Any:
    """A copy with one value replaced by a strange one, or left out."""
    path = rng.choice(list(places(data)))
    copy = json.loads(json.dumps(data))
    if not path:
        return rng.choice(STRANGE)
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if rng.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = rng.choice(STRANGE)
    return copy


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", ["family", "manifest"])
def test_a_pack_damaged_anywhere_is_read_or_refused(part: str, seed: int, tmp_path: Path) -> None:
    rng, name = random.Random(seed), "add-end.json"
    family = json.loads((LEVEL1 / name).read_text())
    manifest = json.loads((LEVEL1 / "manifest.json").read_text())
    manifest |= {"files": {name: manifest["files"][name]}, "others": {}, "count": family["count"]}
    refused = 0
    for _ in range(150):
        text = json.dumps(changed(family, rng) if part == "family" else family)
        manifest["files"][name]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (tmp_path / name).write_text(text)
        (tmp_path / "manifest.json").write_text(json.dumps(changed(manifest, rng) if part == "manifest" else manifest))
        try:
            assert read_pack(tmp_path).tests
        except rq.FileError:
            refused += 1
    assert refused > 100


def test_a_request_damaged_anywhere_is_read_or_refused() -> None:
    rng, refused = random.Random(0), 0
    requests = [
        request_to_json(a.request) for t in level_one().tests[::40] for a in t.asked[:1] if t.family != "network"
    ]
    for _ in range(1500):
        try:
            request_from_json(changed(rng.choice(requests), rng))
        except rq.FileError:
            refused += 1
    assert refused > 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "outputs", "declined", "dtype", "shape", "data", "x"]), inner, max_size=4
        )
    ),
)


@given(st.binary(max_size=40) | JSON.map(lambda data: json.dumps(data).encode()))
def test_any_line_is_an_answer_or_refused(line: bytes) -> None:
    try:
        name, _ = read_reply(line)
    except rq.FileError:
        return
    assert isinstance(name, str)
