"""Operations on single layers, one after another, each when a loss is low enough or was waited for."""

from lighter_freezers.layers.operations.execution import Effect, OperationContext, perform
from lighter_freezers.layers.operations.layer_holds import LayerHolds
from lighter_freezers.layers.operations.parse import Operation, read_operations
from lighter_freezers.layers.operations.queue import OperationQueue, Record

__all__ = [
    "Effect",
    "LayerHolds",
    "OperationContext",
    "Operation",
    "OperationQueue",
    "Record",
    "perform",
    "read_operations",
]
