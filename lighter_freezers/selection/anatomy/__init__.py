"""The parts of a model: blocks, embeddings, norms and heads, found by structure, as names."""

from lighter_freezers.selection.anatomy.anatomy import Anatomy, Stack, anatomy_of

__all__ = ["Anatomy", "Stack", "anatomy_of"]
