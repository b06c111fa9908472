"""What calibration images say of a network: activation ranges, second moments of layer inputs, sensitivities.

Letters: p a patch (the inputs of one output of a layer), C = sum over positions and mean over images of p p'.
An output channel whose weights err by d then errs by d' C d a image, summed over positions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..net.graph import Graph, Node
from ..net.ops_linear import patches
from ..net.plan import ActivationQuantizer
from ..quant.quantizer import reals
from ..quant.ranges import range_parameters
from ..quant.spec import QuantSpec

__all__ = ["RANGES", "activation_quantizers", "output_errors", "second_moment"]

Array = NDArray[Any]

RANGES: dict[str, Callable[[Array], tuple[float, float]]] = {
    "minmax": lambda a: (float(a.min()), float(a.max())),
    "percentile": lambda a: (float(np.percentile(a, 0.01)), float(np.percentile(a, 99.99))),
}
"""name -> (lowest, highest) value of a tensor; `percentile` leaves out 0.01 % at each end."""


def activation_quantizers(
    graph: Graph, trace: Mapping[str, Array], spec: QuantSpec, observer: str = "minmax", headroom: float = 1.0
) -> dict[str, ActivationQuantizer]:
    """A quantizer with zero point for every tensor that a Conv or Gemm reads, for its observed range times `headroom`.

    Raises ArgumentError for an unknown observer.
    """
    if observer not in RANGES:
        raise ArgumentError(complaint(f"observer={observer!r}", f"one of {', '.join(RANGES)}", "activation_quantizers"))
    quantizers = {}
    for node in graph.linear_nodes:
        for name in node.inputs:
            lo, hi = RANGES[observer](reals(trace[name]))
            scale, zero_point = range_parameters(headroom * lo, headroom * hi, spec=spec, rule="affine")
            quantizers[name] = ActivationQuantizer(spec, scale, zero_point)
    return quantizers


CHUNK = 32
"""Images whose patches are held at once."""


def second_moment(node: Node, x: Array) -> NDArray[np.float64]:
    """C of a layer's inputs: shape (groups, K, K), summed over positions, mean over images.

    Raises ArgumentError for no images.
    """
    if not len(x):
        raise ArgumentError(complaint("no calibration images", "at least one", f"second_moment({node.name})"))
    total: Any = 0.0
    for start in range(0, len(x), CHUNK):
        P = patches(node.attrs, x[start : start + CHUNK])  # (N, G, K, L)
        P = P.transpose(1, 2, 0, 3).reshape(P.shape[1], P.shape[2], -1)
        total = total + (P @ P.transpose(0, 2, 1)).astype(np.float64)
    return np.asarray(total / len(x))


def output_errors(error: Array, C: NDArray[np.float64]) -> NDArray[np.float64]:
    """d' C d of every output channel, for weight errors of shape (O, ...); shape (O,).

    >>> output_errors(np.array([[1.0, 2.0]]), np.eye(2)[None]).tolist()
    [5.0]
    """
    d = error.reshape(len(C), -1, C.shape[-1]).astype(np.float64)
    return np.asarray(np.einsum("gok,gok->go", d @ C, d).ravel().clip(min=0.0))
