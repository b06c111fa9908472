"""Makes plans/NAME.npz, the plans and images of the network packs: `python -m refquant.conform.make_plans`.

Run once; the files are data from then on (see `networks`).  Of the 1,024 calibration images those two were taken on
which the most deviations show.
"""

import os
import zipfile
from pathlib import Path

import numpy as np

from ..ptq.methods import quantize_network
from ..quant.granularity import PerChannel, PerTensor
from ..quant.integer_spec import IntegerSpec
from ..zoo import NETWORKS, load_data, load_network
from .networks import PLANS, arrays_of

__all__ = ["IMAGES", "write_plans"]

IMAGES = {"mlp": (49, 14), "cnn": (546, 878), "resnet": (626, 62)}


def write_plans(folder: Path) -> None:
    """Write one file a network, beside and renamed; weights per channel, those of the mlp per tensor."""
    data = load_data("fashion-mnist")
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        grain = PerTensor() if name == "mlp" else PerChannel(0)
        graph, images = load_network(name), data.calibration.x
        plan = quantize_network(graph, images, bits=(8, 8), granularity=grain, integer=IntegerSpec())
        arrays = {"x": images[list(IMAGES[name])], **arrays_of(graph, plan)}
        beside = folder / f".{name}.npz"
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w") as member:  # no date: equal bytes
                    np.lib.format.write_array(member, array, allow_pickle=False)
        os.replace(beside, folder / f"{name}.npz")


if __name__ == "__main__":
    write_plans(PLANS)
