"""The embedded networks and data are what they say they are."""

import gzip
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import refquant.zoo
from refquant.errors import ArgumentError, FileError
from refquant.net.files import write_network
from refquant.net.forward import forward
from refquant.net.graph import macs
from refquant.zoo import DATASETS, NETWORKS, load_data, load_network, make_data
from refquant.zoo.idx import idx_bytes, parse_idx

DATA = Path(refquant.zoo.__file__).parent / "data"


@pytest.mark.guarantee(
    "The three networks have their stated accuracy and logits within 8e-6 of the training framework's", kind="checked"
)
@pytest.mark.parametrize(("name", "correct"), [("mlp", 8987), ("cnn", 9184), ("resnet", 9216)])
def test_networks_have_their_accuracy_and_their_reference_logits(name: str, correct: int) -> None:
    graph, test = load_network(name), load_data("fashion-mnist").test
    logits = forward(graph, test.x)
    assert np.count_nonzero(logits.argmax(axis=1) == test.y) == correct
    assert graph.reference_logits is not None
    assert np.abs(logits[:8] - graph.reference_logits).max() <= 1e-5
    assert round(10_000 * float(graph.notes["test_accuracy"])) == correct


def test_networks_are_of_the_stated_size() -> None:
    stored = {name: sum(a.size for a in load_network(name).arrays.values()) for name in NETWORKS}
    assert stored == {"mlp": 235_146, "cnn": 215_370, "resnet": 60_706}
    costs = macs(load_network("cnn"))
    assert costs == {"conv1": 784 * 16 * 25, "conv2": 196 * 32 * 16 * 25, "gemm1": 1568 * 128, "gemm2": 1280}
    assert macs(load_network("resnet"))["conv8"] == 49 * 96 * 9  # depthwise


def test_a_path_loads_a_network(tmp_path: Path) -> None:
    write_network(load_network("mlp"), tmp_path / "mine.json")
    assert load_network(tmp_path / "mine.json").nodes == load_network("mlp").nodes
    assert load_network(str(tmp_path / "mine.json")).name == "mlp"
    with pytest.raises(FileError, match=r"absent\.json"):
        load_network(tmp_path / "absent.json")


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=f"{', '.join(NETWORKS)}.*json"):
        load_network("vgg")
    with pytest.raises(ArgumentError, match=", ".join(DATASETS)):
        load_data("mnist")


def test_the_data_are_the_published_images_and_classes() -> None:
    data = load_data("fashion-mnist")
    for split, size in ((data.calibration, 1024), (data.test, 10_000)):
        assert split.y is not None
        assert split.x.shape == (size, 1, 28, 28)
        assert split.x.dtype == np.uint8
        assert split.y.shape == (size,)
        assert split.y.dtype == np.int64
        assert not split.x.flags.writeable
        assert not split.y.flags.writeable
        assert sorted(set(split.y.tolist())) == list(range(10))
    assert data.test.y is not None
    files = {"images-idx3-ubyte": data.test.x[:, 0], "labels-idx1-ubyte": data.test.y.astype(np.uint8)}
    for kind, array in files.items():
        published = make_data.PUBLISHED[f"t10k-{kind}"]
        assert sha256(idx_bytes(array)).hexdigest() == published == data.sha256[f"t10k-{kind}"]
    assert "MIT" in data.licence
    assert "Zalando" in data.licence


def test_the_calibration_images_have_their_sum() -> None:
    data = load_data("fashion-mnist")
    found = sha256(idx_bytes(data.calibration.x[:, 0])).hexdigest()
    assert found == data.sha256["train-first1024-images-idx3-ubyte"]
    assert found.startswith("0e5523bb6061d7d7")  # of the published training images, cut after 1,024


def test_the_embedded_files_are_a_few_megabytes() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 8e6


def test_a_changed_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DATA, tmp_path / "data")
    monkeypatch.setattr(refquant.zoo, "_DATA", tmp_path / "data")
    changed = tmp_path / "data" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(changed.read_bytes()))
    content[-1] ^= 1
    changed.write_bytes(gzip.compress(content))
    with pytest.raises(FileError, match=r"SHA-256.*t10k-labels"):
        load_data.__wrapped__("fashion-mnist")


# ---- how the data were made -----------------------------------------------------------------------------------


def test_make_data_cuts_the_training_split_and_keeps_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in of the published files: 1,030 training and 3 test images of 2 x 2 pixels."""
    rng = np.random.default_rng(0)
    content = {}
    for part, size in (("train", 1030), ("t10k", 3)):
        content[f"{part}-{make_data.IMAGES}"] = idx_bytes(rng.integers(0, 256, (size, 2, 2), np.uint8))
        content[f"{part}-{make_data.LABELS}"] = idx_bytes(rng.integers(0, 10, size, np.uint8))
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for i, (name, data) in enumerate(content.items()):
        plain = i % 2 == 0
        (source / (name if plain else f"{name}.gz")).write_bytes(data if plain else gzip.compress(data))
    monkeypatch.setattr(make_data, "PUBLISHED", {name: sha256(data).hexdigest() for name, data in content.items()})
    sums = make_data.make(source, target)
    made = {path.name: path.read_bytes() for path in target.iterdir()}
    assert len(made) == 5
    for name, digest in sums.items():
        assert sha256(gzip.decompress(made[f"{name}.gz"])).hexdigest() == digest
        assert f"{digest}  {name}" in made["fashion-mnist.sha256"].decode().splitlines()
    for kind in (make_data.IMAGES, make_data.LABELS):
        assert gzip.decompress(made[f"t10k-{kind}.gz"]) == content[f"t10k-{kind}"]
        first = parse_idx(gzip.decompress(made[f"train-first1024-{kind}.gz"]), kind)
        assert np.array_equal(first, parse_idx(content[f"train-{kind}"], kind)[:1024])
    make_data.make(source, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == made
    (source / f"t10k-{make_data.IMAGES}").write_bytes(b"other")
    with pytest.raises(FileError, match="SHA-256"):
        make_data.make(source, target)


def test_make_data_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no train-images-idx3-ubyte"):
        make_data.make(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0\0\x08", id="no number of axes"),
        pytest.param(b"\0\0\x08\0", id="no axes"),
        pytest.param(b"\0\0\x08\x01\0\0", id="cut header"),
        pytest.param(b"\0\0\x0d\x01\0\0\0\x01a", id="floats"),
        pytest.param(b"\0\0\x08\x01\0\0\0\x02a", id="too short"),
        pytest.param(b"\0\0\x08\x01\0\0\0\x00a", id="too long"),
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes) -> None:
    with pytest.raises(FileError, match=r"whole idx file.*\[here\]"):
        parse_idx(content, "here")


def test_an_empty_idx_array_is_an_array() -> None:
    assert parse_idx(idx_bytes(np.zeros((0, 28, 28), np.uint8)), "here").shape == (0, 28, 28)
