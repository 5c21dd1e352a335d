"""Operations on single layers, one after another, each once a loss is low enough or a wait is over."""

from lighter_freezers.layers.operations.layer_holds import LayerHolds
from lighter_freezers.layers.operations.parse import Operation, read_operations
from lighter_freezers.layers.operations.queue import OperationQueue, Record

__all__ = [
    "LayerHolds",
    "Operation",
    "OperationQueue",
    "Record",
    "read_operations",
]
