"""Operations on single layers, one after another, each when a loss is low enough or was waited for."""

from lighter_freezers.operations.layer_holds import LayerHolds
from lighter_freezers.operations.performing import Effect, Means, perform
from lighter_freezers.operations.queue import OperationQueue, Record
from lighter_freezers.operations.schedule import Operation, read_operations

__all__ = [
    "Effect",
    "LayerHolds",
    "Means",
    "Operation",
    "OperationQueue",
    "Record",
    "perform",
    "read_operations",
]
