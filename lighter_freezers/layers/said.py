"""What the user says about the layers of a model, for the verbs: it wins over what was found."""

from collections.abc import Sequence
from typing import TypedDict

from torch import nn

from lighter_freezers.selection.anatomy import Anatomy, anatomy_of

__all__ = ["Said", "anatomy_said", "tower_words"]


class Said(TypedDict, total=False):
    """Keyword arguments of the verbs.

    Attributes:
        tower: The tower that is meant, of several that run side by side.
        blocks: As for `anatomy_of`, like the next two.
        head: Paths of the head.
        embeddings: Paths of the embeddings.
    """

    tower: str | None
    blocks: Sequence[str] | None
    head: Sequence[str]
    embeddings: Sequence[str]


def anatomy_said(model: nn.Module, said: Said) -> Anatomy:
    """The anatomy of a model, with what the user says."""
    unknown = sorted(set(said) - set(Said.__annotations__))
    if unknown:
        raise TypeError(f"Unknown argument '{unknown[0]}'. Known: {', '.join(Said.__annotations__)}.")
    return anatomy_of(
        model,
        blocks=said.get("blocks"),
        head=said.get("head", ()),
        embeddings=said.get("embeddings", ()),
    )


def tower_words(anatomy: Anatomy, said: Said) -> str:
    """Which towers are meant, for a sentence; nothing where there is one."""
    names = anatomy.named_towers(said.get("tower"))
    if names == [""]:
        beside = ", ".join(filter(None, anatomy.towers))
        return f" (those of {beside} side by side)" if beside else ""
    return f" of each tower ({', '.join(names)})" if len(names) > 1 else f" of the tower {names[0]}"
