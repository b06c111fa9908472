"""The closed set of operations: one table, name -> attributes, parameters, shape rule and forward rule."""

from .op import Op
from .ops_linear import BATCH_NORM, CONV, GEMM
from .ops_pointwise import ADD, CONCAT, FLATTEN, RELU, RELU6, SOFTMAX
from .ops_pool import AVERAGE_POOL, GLOBAL_AVERAGE_POOL, MAX_POOL

__all__ = ["ALIASES", "OPS"]

OPS: dict[str, Op] = {
    "Conv": CONV,
    "Gemm": GEMM,
    "BatchNorm": BATCH_NORM,
    "Relu": RELU,
    "Relu6": RELU6,
    "Add": ADD,
    "Concat": CONCAT,
    "MaxPool": MAX_POOL,
    "AveragePool": AVERAGE_POOL,
    "GlobalAvgPool": GLOBAL_AVERAGE_POOL,
    "Flatten": FLATTEN,
    "Softmax": SOFTMAX,
}

ALIASES = {"GlobalAveragePool": "GlobalAvgPool"}
"""Other spellings of an operation that files may use."""
