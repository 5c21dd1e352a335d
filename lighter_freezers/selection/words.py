"""Words that stand for parameters where one list takes all kinds: names, paths of modules and patterns."""

from collections.abc import Iterable

from torch import nn

from lighter_freezers.selection.patterns import split_kind
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["names_of_words"]


def names_of_words(model: nn.Module, words: Iterable[str], argument: str) -> set[str]:
    """The canonical names of the parameters that names, paths of modules and patterns select.

    Raises:
        ValueError: A word selects nothing; the message has the name of the argument.
    """
    return {name for word in words for name in _select(model, word, argument)}


def _select(model: nn.Module, word: str, argument: str) -> Iterable[str]:
    is_pattern = split_kind(word)[0] != "glob" or bool(set(word) & set("*?["))
    if not is_pattern:
        try:
            return ParameterSelector(prefixes=(f"{word.rstrip('.')}.",)).select(model)
        except ValueError:
            pass  # no path of a module, so it is the name of a parameter
    selector = ParameterSelector(patterns=(word,)) if is_pattern else ParameterSelector(names=(word,))
    try:
        return selector.select(model)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
