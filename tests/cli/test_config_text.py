"""Callbacks get into any way of writing a Trainer, and the rest of the text stays."""

from typing import Any

import pytest
import yaml

from lighter_freezers.cli.config_text import Commented, add_callbacks

NEW: dict[str, Any] = {"_target_": "a.B", "names": [f"layer.{n}.weight" for n in range(9)], "lr": 1.0e-5}
TEXTS = {
    "a list": "trainer:\n  callbacks:\n    # c\n    - _target_: X  # hi\n      a: 1\n    - {_target_: Y}\n",
    "a list at the level of its key": "trainer:\n  callbacks:\n  - _target_: X\n  - _target_: Y\n  a: 1\n",
    "no callbacks": "# h\nmodel: 1\n\ntrainer:\n    max_epochs: 1\n    _target_: T # note\n    b: 1\n",
    "no line feed at the end": "trainer:\n  _target_: T",
    "no target": "trainer:\n  max_epochs: 3\n",
    "an empty list": "trainer:\n  _target_: T\n  callbacks: []\n  a: 1\n",
    "nothing behind the key": "trainer:\n  callbacks:\n  a: 1\n  _target_: T\n",
    "null": "trainer:\n  callbacks: null # n\n  a: 1\n",
    "a Trainer in brackets": "trainer: {_target_: T, max_epochs: 3}\nmodel: {}\n",
    "all in brackets": "trainer: {_target_: T, callbacks: [{_target_: X}]}  # c\nmodel: {}\n",
    "a list in brackets": "trainer:\n  callbacks: [{_target_: X, b: 1},\n     {_target_: Y}]\n  a: 1\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_callbacks_come_first_and_nothing_else_changes(name: str) -> None:
    """Read back, it is the old config with the new entry; old comments are still there."""
    text = TEXTS[name]
    expected = yaml.safe_load(text)
    expected["trainer"]["callbacks"] = [NEW, *(expected["trainer"].get("callbacks") or [])]
    written = add_callbacks(text, [Commented(("one", "two"), NEW)])

    assert yaml.safe_load(written) == expected
    assert "# one\n" in written
    assert [
        comment in written for comment in ("# c", "# hi", "# h\n", "# note", "# n") if comment in text
    ] == [True for comment in ("# c", "# hi", "# h\n", "# note", "# n") if comment in text]
    if "    # c\n" in text:
        assert written.index("# two") < written.index("# c\n") < written.index("X")
    assert all(len(line) < 110 for line in written.splitlines())


@pytest.mark.parametrize(
    "text", ["trainer: '@t'\n", "trainer:\n  callbacks: '@c'\n", "trainer:\n  callbacks: {_target_: X}\n"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    """A reference could lead anywhere."""
    with pytest.raises(ValueError, match="Write it"):
        add_callbacks(text, [Commented((), NEW)])
