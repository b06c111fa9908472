"""refquant: the ground truth for neural-network quantization, in NumPy and SciPy.

The roof of the house: a table from public name to the module that defines it, loaded on first use,
so that `import refquant` needs NumPy alone and is quick.

>>> import refquant as rq
>>> rq.quantize([0.5, 1.5, -7.0], 1.0, spec=rq.QuantSpec(bits=3))
array([ 0,  2, -4], dtype=int32)
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "RefquantError": "errors",
    "ArgumentError": "errors",
    "CertificateError": "errors",
    "CodeOverflowError": "errors",
    "FileError": "errors",
    "NotANumberError": "errors",
    "QuantSpec": "quant.spec",
    "PerTensor": "quant.granularity",
    "PerChannel": "quant.granularity",
    "PerGroup": "quant.granularity",
    "profile": "quant.profiles",
    "profiles": "quant.profiles",
    "quantize": "quant.quantizer",
    "dequantize": "quant.quantizer",
    "fake_quantize": "quant.quantizer",
    "quantize_exact": "quant.quantizer",
    "range_parameters": "quant.ranges",
    "requantize": "quant.requantize",
    "IntegerSpec": "quant.integer_spec",
    "quantize_bias": "quant.integer_spec",
    "MultiTerm": "quant.multiterm",
    "encode_terms": "solve.terms",
    "Solution": "solve.solution",
    "solve_scale": "solve.scale",
    "allocate": "solve.allocate",
    "Graph": "net.graph",
    "QuantPlan": "net.plan",
    "forward": "net.forward",
    "load_network": "zoo",
    "load_data": "zoo",
    "quantize_network": "ptq.methods",
    "attribute_error": "theory.accumulate",
    "forecast_error": "theory.forecast",
    "bound_error": "theory.bounds",
    "certify": "theory.certificate",
    "diagnose": "conform.diagnose",
}

__all__ = [
    "ArgumentError",
    "CertificateError",
    "CodeOverflowError",
    "FileError",
    "Graph",
    "IntegerSpec",
    "MultiTerm",
    "NotANumberError",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "QuantPlan",
    "QuantSpec",
    "RefquantError",
    "Solution",
    "__version__",
    "allocate",
    "attribute_error",
    "bound_error",
    "certify",
    "dequantize",
    "diagnose",
    "encode_terms",
    "fake_quantize",
    "forecast_error",
    "forward",
    "load_data",
    "load_network",
    "profile",
    "profiles",
    "quantize",
    "quantize_bias",
    "quantize_exact",
    "quantize_network",
    "range_parameters",
    "requantize",
    "solve_scale",
]

if TYPE_CHECKING:
    from .conform.diagnose import diagnose
    from .errors import ArgumentError, CertificateError, CodeOverflowError, FileError, NotANumberError, RefquantError
    from .net.forward import forward
    from .net.graph import Graph
    from .net.plan import QuantPlan
    from .ptq.methods import quantize_network
    from .quant.granularity import PerChannel, PerGroup, PerTensor
    from .quant.integer_spec import IntegerSpec, quantize_bias
    from .quant.multiterm import MultiTerm
    from .quant.profiles import profile, profiles
    from .quant.quantizer import dequantize, fake_quantize, quantize, quantize_exact
    from .quant.ranges import range_parameters
    from .quant.requantize import requantize
    from .quant.spec import QuantSpec
    from .solve.allocate import allocate
    from .solve.scale import solve_scale
    from .solve.solution import Solution
    from .solve.terms import encode_terms
    from .theory.accumulate import attribute_error
    from .theory.bounds import bound_error
    from .theory.certificate import certify
    from .theory.forecast import forecast_error
    from .zoo import load_data, load_network


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'refquant' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
