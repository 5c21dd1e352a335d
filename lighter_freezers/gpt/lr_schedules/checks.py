"""Checks of arguments that several LR schedules share."""

from lighter_freezers.arguments import count

__all__ = ["iterations", "last_iteration"]


def iterations(argument: str, value: object) -> int:
    """Check a number of iterations that cannot be None.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is negative.
    """
    checked = count(argument, value)
    if checked is None:
        raise TypeError(f"{argument} must be a whole number of iterations. Got None.")
    return checked


def last_iteration(value: object, begin: int) -> int | None:
    """Check `max_iters`, where a decay ends, against the iteration where it begins.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It leaves no iteration to decay in.
    """
    last = count("max_iters", value)
    if last is not None and last <= begin:
        raise ValueError(
            f"The rates begin to decay at iteration {begin}, but max_iters={last} ends it. "
            "Raise max_iters, or leave it out to keep the rates."
        )
    return last
