"""What addresses call the stacks and towers of a model: the `clip.text` in `clip.text.block.3`."""

from collections.abc import Sequence

from lighter_freezers.selection.anatomy.anatomy import Anatomy, Stack
from lighter_freezers.selection.anatomy.rows import family_of, short_name, titles_of
from lighter_freezers.selection.anatomy.tree import leading
from lighter_freezers.selection.names import join

__all__ = ["home_of", "prefix_of", "stack_names", "stacks_named"]


def stack_names(anatomy: Anatomy) -> tuple[str, ...]:
    """The name of each stack; stages of one trunk share theirs, and "" is that of the only stack."""
    return _names(anatomy.stacks, [stack.title for stack in anatomy.stacks])


def _names(stacks: Sequence[Stack], titles: Sequence[str]) -> tuple[str, ...]:
    """Short names, and two words where trunks would share one: `vision.transformer`."""
    names = [short_name(title) for title in titles]
    for name in {*names}:
        same = [place for place, each in enumerate(names) if each == name]
        if len({family_of(stacks[place].path) for place in same}) < 2:
            continue
        inner = titles_of([stacks[place].path for place in same])
        if len(same) == len(stacks):  # nothing shorter tells them apart
            ends: Sequence[str] = inner
        else:
            ends = _names([stacks[place] for place in same], inner)
        for place, end in zip(same, ends, strict=True):
            names[place] = join(name, end)
    return tuple(names)


def prefix_of(anatomy: Anatomy, address: str) -> str:
    """The name of a stack or tower that an address begins with, as in `vision.block.3`; "" if none."""
    names = {outer for name in stack_names(anatomy) for outer in leading(name)}
    known = {*names, *anatomy.towers, *(stack.title for stack in anatomy.stacks)} - {""}
    return next((each for each in leading(address) if each in known and each != address), "")


def stacks_named(anatomy: Anatomy, name: str) -> tuple[Stack, ...]:
    """The stacks of that name, or in the tower of that name; all of them for ""."""
    if not name:
        return anatomy.stacks
    shorts = dict(zip(anatomy.stacks, stack_names(anatomy), strict=True))
    exact = tuple(stack for stack in shorts if name in (shorts[stack], stack.title, stack.tower))
    return exact or tuple(stack for stack in shorts if name in leading(shorts[stack]))


def home_of(anatomy: Anatomy, stacks: Sequence[Stack]) -> str:
    """Path of the outermost module around some stacks that holds no other; "" where there is none."""
    others = {path for stack in anatomy.stacks if stack not in stacks for path in stack.block_paths}
    inside = [set(leading(path)) for stack in stacks for path in stack.block_paths]
    taken = {outer for path in others for outer in leading(path)}
    own = set.intersection(*inside) - taken
    return min(own, key=len, default="")
