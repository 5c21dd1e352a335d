"""What a model is made of: blocks, embeddings, norms and heads, found by structure and told in names."""

from lighter_freezers.selection.anatomy.anatomy import Anatomy, Stack, anatomy_of

__all__ = ["Anatomy", "Stack", "anatomy_of"]
