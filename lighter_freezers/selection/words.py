"""Words that stand for parameters where one list takes all kinds: names, paths of modules and patterns."""

from collections.abc import Iterable, Sequence

from torch import nn

from lighter_freezers.selection.patterns import split_kind
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["names_of_words", "parse_words"]


def parse_words(argument: str, value: object) -> tuple[str, ...]:
    """One word or a list of them, as YAML has it; none for None.

    Raises:
        TypeError: It is something else.
    """
    words = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(words, Sequence) or isinstance(words, bytes) or not all(map(_is_word, words)):
        raise TypeError(f"{argument} must be a name, a pattern or a list of them. Got {value!r}.")
    return tuple(words)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value)


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
