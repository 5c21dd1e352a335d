"""Classifies each character of a Python source by `tokenize` and `ast`: ten classes. Independent of a BPE.

| class | what |
|---|---|
| `other` | operators, brackets, commas, and the backslash that continues a line |
| `keyword` | `keyword.iskeyword`: `if`, `None`, `async`; `match`, `case` and `type` are names |
| `string` | literals with their prefix and quotes, docstrings too, an f-string as a whole |
| `comment` | from `#` to the end of the line |
| `def` | the name after `def` or `class` |
| `call` | the name that is called: `f` in `f(x)`, `g` in `a.g(x)` |
| `attr` | a name after a dot that is not called |
| `param` | the name of a parameter where a function or lambda declares it |
| `name` | every other name, the keyword of an argument among them |
| `number` | number literals |

White space outside strings and comments has no class.
"""

import ast
import io
import keyword
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from lighter_freezers.experiments.data.batches import UNLABELLED

__all__ = ["CLASS_NAMES", "CodeClasses", "character_classes", "is_documentation"]

CodeClasses = npt.NDArray[np.uint8]

CLASS_NAMES = ("other", "keyword", "string", "comment", "def", "call", "attr", "param", "name", "number")
CLASSES = {name: index for index, name in enumerate(CLASS_NAMES)}
CLASSES_OF_TYPES = {tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.NUMBER: "number"}
FSTRING_START: int = getattr(tokenize, "FSTRING_START", -1)  # Python 3.12 splits f-strings into tokens,
FSTRING_END: int = getattr(tokenize, "FSTRING_END", -1)  # earlier versions have a single STRING
LONE_RETURN = re.compile(r"\r(?!\n)")
LAST_BLANK = 32  # in source, characters up to the space are white space, and others are not

Place = tuple[int, int]  # line from 1 and column from 0, in characters


def character_classes(source: str) -> CodeClasses:
    """The class of each character of a Python source, as a number in CLASS_NAMES, or UNLABELLED.

    Raises:
        SyntaxError: The running Python cannot parse it.
    """
    source = LONE_RETURN.sub("\n", source)  # a line end for the parser, but not for tokenize
    lines = source.split("\n")  # not splitlines: a form feed does not end a line in Python
    line_starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    roles = _roles(source, lines)
    codes = np.frombuffer(source.encode("utf-32-le"), np.uint32)
    classes = np.where(codes <= LAST_BLANK, UNLABELLED, CLASSES["other"]).astype(np.uint8)
    previous = ""
    for token in _whole_strings(tokenize.generate_tokens(io.StringIO(source).readline)):
        name = CLASSES_OF_TYPES.get(token.type)
        if token.type == tokenize.NAME:
            name = roles.class_of(token, previous)
        if name is not None:
            (first_line, first), (last_line, last) = token.start, token.end
            classes[line_starts[first_line - 1] + first : line_starts[last_line - 1] + last] = CLASSES[name]
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            previous = token.string
    return classes


def is_documentation(classes: CodeClasses) -> npt.NDArray[np.bool_]:
    """Which characters are in comments and strings, including quotes, number signs and white space."""
    return np.isin(classes, [CLASSES["comment"], CLASSES["string"]])


def _whole_strings(tokens: Iterable[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """The tokens, with an f-string and all that is in it as one STRING, as before Python 3.12."""
    starts: list[Place] = []
    for token in tokens:
        if token.type == FSTRING_START:
            starts.append(token.start)
        elif token.type == FSTRING_END:
            start = starts.pop()
            if not starts:
                yield tokenize.TokenInfo(tokenize.STRING, token.string, start, token.end, token.line)
        elif not starts:
            yield token


@dataclass
class _Roles:
    """The names whose class only the syntax tree shows."""

    params: set[Place] = field(default_factory=set)  # starts of the names
    called_names: set[Place] = field(default_factory=set)  # starts of the names
    called_attributes: set[Place] = field(default_factory=set)  # ends of the names

    def class_of(self, token: tokenize.TokenInfo, previous: str) -> str:
        """The class of a NAME, given the previous token."""
        if keyword.iskeyword(token.string):
            return "keyword"
        if previous in ("def", "class"):
            return "def"
        if token.start in self.params:
            return "param"
        if token.start in self.called_names or token.end in self.called_attributes:
            return "call"
        return "attr" if previous == "." else "name"


def _roles(source: str, lines: list[str]) -> _Roles:
    roles = _Roles()
    is_ascii = source.isascii()

    def place(line: int, column: int) -> Place:
        """The line and column of a node in characters; `ast` counts columns in UTF-8 bytes."""
        return (line, column if is_ascii else len(lines[line - 1].encode()[:column].decode()))

    for node in _nodes_outside_of_strings(source):
        if isinstance(node, ast.arg):
            roles.params.add(place(node.lineno, node.col_offset))
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                roles.called_names.add(place(called.lineno, called.col_offset))
            elif isinstance(called, ast.Attribute):
                assert called.end_lineno is not None
                assert called.end_col_offset is not None
                roles.called_attributes.add(place(called.end_lineno, called.end_col_offset))
    return roles


def _nodes_outside_of_strings(source: str) -> Iterator[ast.AST]:
    """All nodes except those in f-strings, which count as strings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no warnings about invalid escapes in code that is only read
        pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if not isinstance(node, ast.JoinedStr):
            yield node
            pending.extend(ast.iter_child_nodes(node))
