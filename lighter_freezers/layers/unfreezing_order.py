"""How many layers train in which epoch of a gradual unfreezing: the schedule as a pure function."""

__all__ = ["num_unfrozen_layers"]


def num_unfrozen_layers(epoch: int, num_layers: int, total_epochs: int) -> int:
    """How many layers, counted from the head, train in an epoch.

    None in the first epoch, where only the head trains; half of them in epoch `(total_epochs + 1) // 2`,
    counted from 1; all in the last. In between the number grows evenly and is rounded down.

    | epochs, counted from 1 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 |
    |---|---|---|---|---|---|---|---|---|---|---|
    | layers of 12 | 0 | 1 | 3 | 4 | 6 | 7 | 8 | 9 | 10 | 12 |

    Args:
        epoch: Counted from 0, as a training loop counts.
        num_layers: Layers of the model, 0 or more.
        total_epochs: Length of the schedule, at least 1. In a schedule of one epoch all layers train in it;
            in one of two there is no epoch between the head alone and all.

    Returns:
        A number from 0 to `num_layers`; `num_layers` from the last epoch on.

    Raises:
        ValueError: A number is negative, or there is no epoch.
    """
    if epoch < 0 or num_layers < 0 or total_epochs < 1:
        raise ValueError(
            f"Epochs and layers count from 0 and a schedule has at least 1 epoch. Got epoch {epoch}, "
            f"{num_layers} layers and {total_epochs} epochs."
        )
    last = total_epochs - 1
    halfway = last // 2
    if epoch >= last:
        return num_layers
    if epoch <= halfway:
        return num_layers * epoch // (2 * halfway) if halfway else 0
    return num_layers * (last + epoch - 2 * halfway) // (2 * (last - halfway))
