"""Resolves rules over parameter names to the parameters of a model. The only place that matches prefixes.

`patterns.py` matches patterns; callers decide what to do with the selected parameters.
"""

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn

from lighter_freezers.selection.anatomy import Anatomy, anatomy_of
from lighter_freezers.selection.block_indices import counts_blocks
from lighter_freezers.selection.names import (
    Layout,
    any_parameter,
    canonical_name,
    closest_names,
    layout,
    named_aliases,
    spellings,
    walk,
)
from lighter_freezers.selection.patterns import (
    check_pattern,
    match_class,
    match_glob,
    match_layers,
    match_regex,
    split_kind,
)
from lighter_freezers.selection.tied_weights import Marks, TiedWeights, collect

__all__ = ["ParameterSelector", "canonical_name"]

ARGUMENTS: Mapping[str, str] = {  # field -> what YAML calls it
    "names": "names",
    "prefixes": "name_starts_with",
    "patterns": "patterns",
    "except_names": "except_names",
    "except_prefixes": "except_name_starts_with",
    "except_patterns": "except_patterns",
}


@dataclass(frozen=True)
class ParameterSelector:
    """Selects parameters: what a name, prefix or pattern matches, except what an exception matches.

    Names are canonical: what compile, FSDP, DDP and checkpointing add to them is dropped, from rules too. A
    rule is tried as it is, then behind `network.`, behind `model.`, without its own leading `network.` or
    `model.`, and with the other one in its place; the first spelling that matches anything counts.

    ```python
    ParameterSelector(prefixes=("encoder.",))  # all below encoder
    ParameterSelector(prefixes=("layer1",))  # layer1, and layer10 too: it warns
    ParameterSelector(names=("head.bias",))  # one parameter
    ParameterSelector(patterns=("*.bias", "class:BatchNorm2d"))  # all biases, all batch norms
    ParameterSelector(patterns=("layers:attn.0-3", "re:conv[12]"))  # four attentions, two convolutions
    ```

    Attributes:
        names: Full parameter names.
        prefixes: Beginnings of parameter names, taken literally.
        patterns: Globs over full names (`*` crosses dots), `re:REGEX` found anywhere in the name,
            `class:NAME` for all in modules of that class, `layers:attn.2` for a layer by its short name.
        except_names: Full names to leave out.
        except_prefixes: Beginnings of names to leave out.
        except_patterns: Patterns to leave out.
        blocks: What `layers:block.N` counts, as for `anatomy_of`, like the next two. Empty to find it.
        head: What `layers:head` is.
        embeddings: What `layers:embeddings` is.
    """

    names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    except_names: tuple[str, ...] = ()
    except_prefixes: tuple[str, ...] = ()
    except_patterns: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.names or self.prefixes or self.patterns):
            raise ValueError("Say what to freeze: names, name_starts_with or patterns.")
        for field, argument in ARGUMENTS.items():
            for text in getattr(self, field):
                _check_text(argument, text)
        for text in self.patterns:
            check_pattern("patterns", text)
        for text in self.except_patterns:
            check_pattern("except_patterns", text)
        self._refuse_idle_paths()

    @classmethod
    def from_arguments(
        cls,
        *,
        names: str | Sequence[str] | None = None,
        name_starts_with: str | Sequence[str] | None = None,
        patterns: str | Sequence[str] | None = None,
        except_names: str | Sequence[str] | None = None,
        except_name_starts_with: str | Sequence[str] | None = None,
        except_patterns: str | Sequence[str] | None = None,
        blocks: str | Sequence[str] | None = None,
        head: str | Sequence[str] | None = None,
        embeddings: str | Sequence[str] | None = None,
    ) -> "ParameterSelector":
        """Build a selector from what YAML gives: one string, a list of strings or None each."""
        return cls(
            names=_strings("names", names),
            prefixes=_strings("name_starts_with", name_starts_with),
            patterns=_strings("patterns", patterns),
            except_names=_strings("except_names", except_names),
            except_prefixes=_strings("except_name_starts_with", except_name_starts_with),
            except_patterns=_strings("except_patterns", except_patterns),
            blocks=_strings("blocks", blocks),
            head=_strings("head", head),
            embeddings=_strings("embeddings", embeddings),
        )

    def anatomy(self, model: nn.Module) -> Anatomy:
        """The anatomy that its `layers:` patterns go by."""
        return anatomy_of(model, blocks=self.blocks or None, head=self.head, embeddings=self.embeddings)

    @property
    def counts_blocks(self) -> bool:
        """Whether a pattern means blocks by their place in the order."""
        found = (split_kind(text) for text in (*self.patterns, *self.except_patterns))
        return any(kind == "layers" and counts_blocks(rest) for kind, rest in found)

    def _refuse_idle_paths(self) -> None:
        kinds = {split_kind(text)[0] for text in (*self.patterns, *self.except_patterns)}
        given = [name for name in ("blocks", "head", "embeddings") if getattr(self, name)]
        if given and "layers" not in kinds:
            raise ValueError(
                f"{given[0]} says what a pattern such as 'layers:block.0-2' counts, but none of the patterns "
                f"begins with 'layers:'. Write one, or leave {given[0]} out."
            )

    def select(
        self,
        model: nn.Module,
        on_missing: Literal["error", "warn"] = "error",
        tied: TiedWeights | None = None,
    ) -> dict[str, nn.Parameter]:
        """Find the parameters in a model.

        Args:
            model: The network, or the LightningModule around it.
            on_missing: Whether rules that match no parameter are an error or only a warning.
            tied: The tied weights of this model, for many selectors in a row; None to find them.

        Returns:
            Canonical name to parameter in model order, each parameter once. A tied weight is selected if a
            rule matches any of its names, left out if an exception does, and listed under its first name.

        Raises:
            ValueError: If a rule or an exception matches no parameter, or the exceptions leave nothing.
        """
        finder = _Finder(model, self)
        kept, excepted = Marks(), Marks()
        missing = [
            *finder.mark_names("names", self.names, kept),
            *finder.mark_prefixes("prefixes", self.prefixes, kept),
            *finder.mark_patterns("patterns", self.patterns, kept),
            *finder.mark_names("except_names", self.except_names, excepted),
            *finder.mark_prefixes("except_prefixes", self.except_prefixes, excepted),
            *finder.mark_patterns("except_patterns", self.except_patterns, excepted),
        ]
        if missing:
            _report(missing, type(model).__name__, on_missing)
        selected = collect(tied or TiedWeights(model), kept, excepted)
        if kept.below and not selected:
            exceptions = [*self.except_names, *self.except_prefixes, *self.except_patterns]
            raise ValueError(
                f"The exceptions {exceptions} leave nothing of what the rules match. Make them narrower."
            )
        return selected


def _strings(argument: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        given = f"{value!r} ({type(value).__name__})"
        raise TypeError(f"{argument} must be a string or a list of strings. Got {given}.")
    return tuple(value)


def _check_text(argument: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{argument} must hold strings. Got {text!r} ({type(text).__name__}).")
    if not canonical_name(text).strip(". "):
        raise ValueError(f"{argument}: {text!r} would match everything. If you mean that: patterns: '*'.")


class _Finder:
    """Finds rules in one model, and builds as few names as possible."""

    def __init__(self, model: nn.Module, rule: ParameterSelector) -> None:
        self._model, self._rule = model, rule
        self._layouts: dict[str, Layout | None] = {"": layout(model, at_root=True)}
        self._sorted_names: dict[str, list[str]] = {}

    def mark_names(self, field: str, names: Iterable[str], marks: Marks) -> Iterator[str]:
        """Mark parameters by their full names; yield a message for each that does not exist."""
        for text in names:
            if not any(self._mark_name(spelling, marks) for spelling in spellings(text)):
                yield self._explain_name(field, text)

    def _mark_name(self, name: str, marks: Marks) -> bool:
        parent, _, last = name.rpartition(".")
        around = self._layout_at(parent)
        if around is None or around[0].get(last) is None:
            return False
        marks.add(parent, (last,))
        return True

    def mark_prefixes(self, field: str, prefixes: Iterable[str], marks: Marks) -> Iterator[str]:
        """Mark what starts with a prefix; yield a message for each prefix without a match."""
        for text in prefixes:
            for spelling in spellings(text):
                parent, found = self._starting_with(spelling)
                if found:
                    marks.add(parent, found)
                    if text[-1].isdigit():
                        _warn_of_longer_index(ARGUMENTS[field], text, spelling.rpartition(".")[2], found)
                    break
            else:
                yield self._explain(field, text, [*self._module_paths, *self._names])

    def _starting_with(self, prefix: str) -> tuple[str, Sequence[str]]:
        """The module in which a prefix ends, and the names in that module that start with the rest of it."""
        parent, _, beginning = prefix.rpartition(".")
        if not beginning:
            return self._whole_module(parent)
        around = self._layout_at(parent)
        if around is None:
            return parent, []
        if parent not in self._sorted_names:
            self._sorted_names[parent] = sorted({*around[0], *around[1]})
        found = _run_of(self._sorted_names[parent], beginning)
        return parent, found if any_parameter(around, found) else []

    def _whole_module(self, path: str) -> tuple[str, Sequence[str]]:
        """The same for a prefix that ends in a dot."""
        around = self._layout_at(path)
        parent, _, name = path.rpartition(".")
        is_match = bool(path) and around is not None and any_parameter(around, (*around[0], *around[1]))
        return parent, [name] if is_match else []

    def mark_patterns(self, field: str, patterns: Iterable[str], marks: Marks) -> Iterator[str]:
        """Mark what matches a pattern; yield a message for each pattern without a match."""
        for text in patterns:
            try:
                found = self._matching(text)
            except ValueError as error:  # an unknown class or layer; the message says which there are
                yield f"{ARGUMENTS[field]} '{text}': {error}"
                continue
            for name in found:
                parent, _, last = name.rpartition(".")
                marks.add(parent, (last,))
            if not found:
                yield self._explain(field, text, self._names)

    def _matching(self, pattern: str) -> Sequence[str]:
        kind, text = split_kind(pattern)
        if kind == "class":
            return match_class(text, self._model)
        if kind == "layers":
            return match_layers(text, self._model, self._anatomy)
        if kind == "re":
            return match_regex(text, self._names)
        matches = (match_glob(spelling, self._names) for spelling in spellings(text))
        return next(filter(None, matches), [])

    def _layout_at(self, path: str) -> Layout | None:
        if path not in self._layouts:
            parent, _, name = path.rpartition(".")
            around = self._layout_at(parent)
            module = None if around is None else around[1].get(name)
            self._layouts[path] = None if module is None else layout(module)
        return self._layouts[path]

    @cached_property
    def _anatomy(self) -> Anatomy:
        return self._rule.anatomy(self._model)

    @cached_property
    def _names(self) -> list[str]:
        return [name for name, _ in named_aliases(self._model)]

    @cached_property
    def _module_paths(self) -> list[str]:
        return [path for path, _ in walk(self._model) if path]

    def _explain_name(self, field: str, text: str) -> str:
        module = next((spelling for spelling in spellings(text) if spelling in self._module_paths), None)
        if module is None:
            return self._explain(field, text, self._names)
        argument = ARGUMENTS[field.replace("names", "prefixes")]
        return f"{ARGUMENTS[field]} '{text}' is a module, not a parameter: write {argument}: '{module}.'"

    def _explain(self, field: str, text: str, known: Sequence[str]) -> str:
        close = ", ".join(f"'{name}'" for name in closest_names(canonical_name(text), known))
        return f"{ARGUMENTS[field]} '{text}' matches no parameter. Closest names: {close}"


def _run_of(sorted_names: Sequence[str], beginning: str) -> Sequence[str]:
    """The names that start with `beginning`: they stand side by side."""
    first = end = bisect_left(sorted_names, beginning)
    while end < len(sorted_names) and sorted_names[end].startswith(beginning):
        end += 1
    return sorted_names[first:end]


def _warn_of_longer_index(argument: str, text: str, last: str, found: Sequence[str]) -> None:
    """Warn that `layer1` takes `layer10` too, as a literal prefix does: it is rarely intended."""
    longer = next((name for name in found if name[len(last) :][:1].isdigit()), None)
    if longer is not None and last in found:
        warnings.warn(
            f"{argument} '{text}' also takes '{text.removesuffix(last)}{longer}'. "
            f"If you mean only '{text}', write '{text}.'",
            stacklevel=4,
        )


def _report(missing: Sequence[str], model_class: str, on_missing: Literal["error", "warn"]) -> None:
    count = "One rule matches" if len(missing) == 1 else f"{len(missing)} rules match"
    message = (
        f"{count} no parameter of {model_class}:\n- " + "\n- ".join(missing) + "\n"
        "Correct or remove. All names: [name for name, _ in model.named_parameters()]"
    )
    if on_missing == "error":
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)
