"""The closed set of operations: one table, name -> attributes, parameters, rules of shape, value and derivative."""

from .op import Op
from .ops_linear import CONV, GEMM
from .ops_norm import BATCH_NORM, BATCH_NORM_TRAINING
from .ops_pointwise import ADD, CONCAT, FLATTEN, RELU, RELU6, SOFTMAX
from .ops_pool import AVERAGE_POOL, GLOBAL_AVERAGE_POOL, MAX_POOL

__all__ = ["ALIASES", "OPS", "TRAINING"]

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

TRAINING: dict[str, Op] = {**OPS, "BatchNorm": BATCH_NORM_TRAINING}
"""The ops while a network is trained: batch norms take the moments of the batch."""

ALIASES = {"GlobalAveragePool": "GlobalAvgPool"}
"""Other spellings of an operation that files may use."""
