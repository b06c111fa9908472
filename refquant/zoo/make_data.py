"""Make the embedded Fashion-MNIST files from the four published ones: `python -m refquant.zoo.make_data FOLDER`.

FOLDER holds the idx files, gzipped (as in Debian's package dataset-fashion-mnist) or not.  Their SHA-256 sums are
checked.  Written beside this script, in `data/`: the first 1,024 images and labels of the training split, the test
split as published, all gzipped without name or time, so that the bytes are the same each time, and the sums.
The licence, `data/fashion-mnist.licence`, is kept by hand.
"""

import gzip
import sys
from hashlib import sha256
from pathlib import Path

from ..errors import FileError, complaint
from .idx import idx_bytes, parse_idx

__all__ = ["IMAGES", "LABELS", "PUBLISHED", "make", "published"]

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
CALIBRATION = 1024

PUBLISHED = {
    f"train-{IMAGES}": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    f"train-{LABELS}": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    f"t10k-{IMAGES}": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    f"t10k-{LABELS}": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 sums of the published files, uncompressed."""


def published(folder: Path, name: str) -> bytes:
    """The content of a published file.

    Raises FileError if it is not in the folder or not what was published.
    """
    plain, zipped = folder / name, folder / f"{name}.gz"
    if not plain.exists() and not zipped.exists():
        todo = "install Debian's package dataset-fashion-mnist, or unpack it, and give its folder of idx files"
        raise FileError(complaint(f"no {name}", "there, gzipped or not", f"{folder}", todo))
    content = plain.read_bytes() if plain.exists() else gzip.decompress(zipped.read_bytes())
    found = sha256(content).hexdigest()
    if found != PUBLISHED[name]:
        raise FileError(complaint(f"SHA-256 {found}", PUBLISHED[name], f"{folder}/{name}"))
    return content


def make(source: Path, target: Path) -> dict[str, str]:
    """The SHA-256 sums by file name of what is written to the folder target: four idx files, gzipped, and the sums.

    Raises FileError for a source that is missing or not as published.
    """
    content = {name: published(source, name) for name in PUBLISHED}
    embedded = {name: content[name] for name in content if name.startswith("t10k")}
    for kind in (IMAGES, LABELS):
        first = parse_idx(content[f"train-{kind}"], kind)[:CALIBRATION]
        embedded[f"train-first{CALIBRATION}-{kind}"] = idx_bytes(first)
    for name, data in embedded.items():
        (target / f"{name}.gz").write_bytes(gzip.compress(data, 9, mtime=0))
    sums = {name: sha256(data).hexdigest() for name, data in embedded.items()}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (target / "fashion-mnist.sha256").write_text(lines, encoding="utf-8")
    return sums


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).parent / "data")
