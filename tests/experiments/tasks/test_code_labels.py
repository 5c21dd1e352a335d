"""The class of each character of a Python source, against masks written by hand."""

import tokenize
from pathlib import Path

import numpy as np
import pytest

from lighter_freezers.experiments.data.batches import UNLABELLED
from lighter_freezers.experiments.tasks import code_labels
from lighter_freezers.experiments.tasks.code_labels import CLASS_NAMES, character_classes, is_documentation

# Below each line of source one letter per character; a dot has no class.
LETTERS = dict(zip("okscdCapnN", CLASS_NAMES, strict=True))
CODE = r'''
@wraps(f)
oCCCCCono
async def go(x, *args, y: int = 0x1F, **kw) -> None:
kkkkk.kkk.ddopo.oppppo.po.nnn.o.NNNNo.ooppo.oo.kkkko
    """Doc # no comment."""
....sssssssssssssssssssssss
    return self.run(x).w(b"s", key=lambda z: z.v)  # why?
....kkkkkk.nnnnoCCConooCosssso.nnnokkkkkk.po.noao..cccccc
class A(B.C, metaclass=M): n = 1.5e3
kkkkk.donoao.nnnnnnnnnonoo.n.o.NNNNN
if not a.b[0] and print (a.f) is None: pass
kk.kkk.noaoNo.kkk.CCCCC.onoao.kk.kkkko.kkkk
match = case(type) + \
nnnnn.o.CCCConnnno.o.o
    f"{g(x)} {x!r:>{w}}" + "a" rf'b{c}'
....ssssssssssssssssssss.o.sss.ssssssss
from .p import q
kkkk.oa.kkkkkk.n
'''.strip().split("\n")
LINES, MASKS = CODE[::2], CODE[1::2]


def letters(source: str) -> str:
    """The classes of a source as letters, with ends of lines as they are."""
    by_name = {name: letter for letter, name in LETTERS.items()}
    classes = character_classes(source)
    assert len(classes) == len(source)
    return "".join(
        character if character in "\r\n" else "." if number == UNLABELLED else by_name[CLASS_NAMES[number]]
        for character, number in zip(source, classes, strict=True)
    )


def test_each_character_has_its_class() -> None:
    """Names by their role, an f-string as a whole, soft keywords as names, a backslash as other."""
    seen = letters("\n".join(LINES) + "\n").split("\n")

    assert dict(zip(LINES, seen, strict=False)) == dict(zip(LINES, MASKS, strict=True))


@pytest.mark.parametrize(
    ("source", "mask"),
    [
        ("\x0cdef f(): # \x0c c\n\tg()\n", ".kkk.dooo.ccccc\n.Coo\n"),  # a form feed ends no line
        ("if x:\r\n  y()\r\n", "kk.no\r\n..Coo\r\n"),
        ("x = (a.  # c\n  b)\n", "n.o.ono..ccc\n..ao\n"),  # the dot is before the comment
        ("x\ry()\n", "n\rCoo\n"),  # an old line end, which tokenize does not know
    ],
)
def test_odd_blanks_and_line_ends_move_nothing(source: str, mask: str) -> None:
    """Places are counted in characters, and lines as Python counts them."""
    assert letters(source) == mask


def test_other_alphabets_move_nothing() -> None:
    """`ast` counts bytes, `tokenize` characters."""
    source = "é = 'äöü'; fé(ü.ö(lambda ß: 1), 漢.字)\n"

    assert letters(source) == "n.o.ssssso.CConoCokkkkkk.po.Noo.noao\n"


def test_an_f_string_over_lines_is_one_string() -> None:
    """What it holds has no classes of its own, and none is given elsewhere."""
    source = 'f = f"""\n{g()}"""\nggg = g\n'

    assert letters(source) == "n.o.ssss\nssssssss\nnnn.o.n\n"


def test_parts_of_f_strings_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.12 gives them: start, middle, names, and another f-string within."""
    start, middle, end = 1001, 1002, 1003
    monkeypatch.setattr(code_labels, "FSTRING_START", start)
    monkeypatch.setattr(code_labels, "FSTRING_END", end)
    parts = [  # a = f"b{f'{c}'}" ; d
        (tokenize.NAME, "a", 0, 1),
        (start, 'f"', 4, 6),
        (middle, "b", 6, 7),
        (tokenize.OP, "{", 7, 8),
        (start, "f'", 8, 10),
        (tokenize.OP, "{", 10, 11),
        (tokenize.NAME, "c", 11, 12),
        (tokenize.OP, "}", 12, 13),
        (end, "'", 13, 14),
        (tokenize.OP, "}", 14, 15),
        (end, '"', 15, 16),
        (tokenize.NAME, "d", 18, 19),
    ]
    tokens = [tokenize.TokenInfo(kind, text, (1, a), (1, b), "") for kind, text, a, b in parts]
    whole = list(code_labels._whole_strings(tokens))

    assert [(token.type, token.start[1], token.end[1]) for token in whole] == [
        (tokenize.NAME, 0, 1),
        (tokenize.STRING, 4, 16),
        (tokenize.NAME, 18, 19),
    ]


def test_documentation_is_strings_and_comments() -> None:
    """With their quotes and blanks; the blank before a comment is none."""
    source = "x = 'a b'  # c d\n"
    flags = is_documentation(character_classes(source))

    assert "".join(np.array(list(source))[flags]) == "'a b'# c d"


def test_what_is_no_python_is_refused() -> None:
    """With Python's own error."""
    with pytest.raises(SyntaxError):
        character_classes("def f(:\n")


def test_the_tests_of_python_have_all_classes() -> None:
    """A real module, found where this file's own source is: no class is empty, no character has another."""
    classes = character_classes(Path(__file__).read_text(encoding="utf-8"))

    assert set(np.unique(classes)) == {*range(len(CLASS_NAMES)), UNLABELLED}
