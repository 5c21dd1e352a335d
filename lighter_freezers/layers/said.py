"""What the user says about the layers of a model, for the verbs: it wins over what was found."""

from collections.abc import Sequence
from typing import TypedDict

from torch import nn

from lighter_freezers.selection.anatomy import Anatomy, anatomy_of
from lighter_freezers.selection.layer_names import parameters_of_layer

__all__ = ["Said", "anatomy_said", "of_tower", "tower_words"]


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


def of_tower(
    model: nn.Module, anatomy: Anatomy, said: Said, role: str, every: Sequence[str]
) -> Sequence[str]:
    """The head or the embeddings of the tower that is meant; those of the model where none is.

    Raises:
        ValueError: There is no such tower, or it has none of its own.
    """
    tower = said.get("tower")
    if tower is None:
        return every
    anatomy.named_towers(tower)
    return list(parameters_of_layer(model, f"{tower}.{role}", anatomy))


def tower_words(anatomy: Anatomy, said: Said) -> str:
    """Which towers are meant, for a sentence; nothing where there is one."""
    names = anatomy.named_towers(said.get("tower"))
    if names == [""]:
        beside = ", ".join(filter(None, anatomy.towers))
        return f" (those of {beside} side by side)" if beside else ""
    return f" of each tower ({', '.join(names)})" if len(names) > 1 else f" of the tower {names[0]}"
