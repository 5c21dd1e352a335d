"""Prompts and answers as tokens: the boundary, the end, and what is cut."""

from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.experiments.data.prompt_encoding import (
    EncodedPrompt,
    NoRoom,
    encode_answers,
    encode_prompts,
)
from lighter_freezers.experiments.data.prompt_tokenizer import (
    kept_tokenizer,
    prompt_tokenizer,
    transformers_tokenizer,
)
from lighter_freezers.experiments.data.prompts import PromptedRow, prompt_with
from tests.experiments.data import prompt_tokenizers

KINDS = prompt_tokenizers.all_kinds()
LONG = 10**6
each_kind = pytest.mark.parametrize("kind", KINDS)


def row(
    content: str = "name[The Mill], food[French]", target: str = "The Mill serves French food."
) -> PromptedRow:
    prompt, context = prompt_with("Describe it.", {"Input": content}, answer="Output", context="Input")
    return PromptedRow(prompt, target, (target,), group=content, context=context)


def encoded(one: EncodedPrompt | NoRoom) -> EncodedPrompt:
    assert isinstance(one, EncodedPrompt)
    return one


@each_kind
@pytest.mark.parametrize(
    "target", ["The Mill serves food.", "a", "'x' = 3", "é漢😀", "SELECT MAX(a) FROM table"]
)
def test_a_model_is_asked_as_it_was_taught_and_learns_the_answer(kind: str, target: str) -> None:
    """The prompt's tokens are the same with and without answer; what follows is the answer and one end."""
    tokenizer = KINDS[kind]
    (taught,) = encode_answers([row(target=target)], tokenizer, LONG)
    (asked,) = encode_prompts([row(target=target)], tokenizer, LONG)

    ids, prompt_ids = encoded(taught).ids, encoded(asked).ids
    num_answer = encoded(taught).num_answer
    assert ids[:-num_answer] == prompt_ids
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in ids[len(tokenizer.begins_with) : -1]
    assert tokenizer.decode(ids) == row().prompt + target
    if kind != "llama":  # by itself, Llama's decoder takes the first space of whatever it is given away
        assert tokenizer.decode(ids[-num_answer:]) == target


def test_llamas_answer_does_not_begin_with_a_space() -> None:
    """Encoded by itself it would: then a model would learn to answer with a space first."""
    tokenizer = KINDS["llama"]
    (taught,) = encode_answers([row(target="The Mill")], tokenizer, LONG)
    answer = tokenizer.source.convert_ids_to_tokens(list(encoded(taught).ids[-encoded(taught).num_answer :]))
    alone = tokenizer.source.convert_ids_to_tokens(tokenizer.encode_all(["The Mill"])[0])

    assert alone[0].startswith("▁")
    assert not answer[0].startswith("▁")
    assert "".join(answer) == "The▁Mill</s>"


def test_transformers_itself_gives_the_same_tokens() -> None:
    """Those of the whole text, and the end: what stock code has for a prompt with its answer."""
    tokenizer = prompt_tokenizers.llama()
    (taught,) = encode_answers([row()], transformers_tokenizer(tokenizer), LONG)

    assert list(encoded(taught).ids) == [
        *tokenizer(row().prompt + row().target).input_ids,
        tokenizer.eos_token_id,
    ]


def test_a_boundary_inside_a_token_leaves_the_prompt_as_it_is_asked() -> None:
    """This tokenizer joins the end of a line with what follows; the answer is then encoded by itself."""
    tokenizer = KINDS["greedy"]
    joined = PromptedRow("a:\n", "b", ("b",), group="")
    (taught,) = encode_answers([joined], tokenizer, LONG)
    (asked,) = encode_prompts([joined], tokenizer, LONG)

    assert len(tokenizer.encode_all(["a:\nb"])[0]) < len(encoded(taught).ids) - 1  # it does join them
    assert encoded(taught).ids == (*encoded(asked).ids, *tokenizer.encode_all(["b"])[0], tokenizer.eos_id)


def test_answers_that_are_encoded_by_themselves_are_one_call(tmp_path: Path) -> None:
    """So the cache keeps three files for all rows, not one for each."""
    rows = [PromptedRow("a:\n", f"b {number}", ("b",), group="") for number in range(20)]
    kept = kept_tokenizer(KINDS["greedy"], tmp_path)

    assert encode_answers(rows, kept, LONG) == [
        encode_answers([row], KINDS["greedy"], LONG)[0] for row in rows
    ]
    assert len(list(tmp_path.iterdir())) == 3


@each_kind
def test_text_that_looks_like_a_special_token_is_text(kind: str) -> None:
    """An answer with `</s>` in it does not end there."""
    tokenizer = KINDS[kind]
    (taught,) = encode_answers([row(target="a </s> <|end|> b")], tokenizer, LONG)

    assert encoded(taught).ids.count(tokenizer.eos_id) == 1 + tokenizer.begins_with.count(tokenizer.eos_id)
    assert tokenizer.decode(encoded(taught).ids).endswith("a </s> <|end|> b")


@each_kind
@pytest.mark.parametrize("max_length", [150, 151, 200, 260])
def test_the_context_is_cut_and_nothing_else(kind: str, max_length: int) -> None:
    """What is kept begins as the context does; instruction, titles and the answer are whole."""
    tokenizer = KINDS[kind]
    content = "name[The Mill], food[French], ünï[漢字], near[the river] " * 40
    (taught,) = encode_answers([row(content)], tokenizer, max_length)
    one = encoded(taught)
    before, after = row(content).prompt.split(content)
    kept = one.prompt.removeprefix(before).removesuffix(after)

    assert one.is_cut
    assert max_length - 10 < len(one.ids) <= max_length
    assert content.startswith(kept)
    assert 0 < len(kept) < len(content)
    assert tokenizer.decode(one.ids) == before + kept + after + row().target
    assert one.prompt.startswith("### Instruction: Describe it.\n\n### Input:\nname")
    assert one.prompt.endswith("\n\n### Output:\n")


def test_a_row_that_just_fits_is_not_cut() -> None:
    """And with one token less it is."""
    tokenizer = KINDS["gpt2"]
    length = len(encoded(encode_answers([row()], tokenizer, LONG)[0]).ids)
    (whole,), (cut,) = (encode_answers([row()], tokenizer, n) for n in (length, length - 1))

    assert not encoded(whole).is_cut
    assert encoded(cut).is_cut


@each_kind
def test_an_answer_without_room_is_never_cut(kind: str) -> None:
    """There is no sequence then, but how many tokens it would need without its context."""
    tokenizer = KINDS[kind]
    long_answer = row(target="French food and fair prices " * 30)
    (bare,) = encode_answers([row("", target=long_answer.target)], tokenizer, LONG)
    (found,) = encode_answers([long_answer], tokenizer, 100)

    assert found == NoRoom(len(encoded(bare).ids))
    (just,) = encode_answers([long_answer], tokenizer, found.num_needed)
    assert encoded(just).num_answer == encoded(bare).num_answer


def test_a_prompt_without_a_context_to_cut_has_no_room() -> None:
    """Rows that say nothing may be cut are left whole."""
    fixed = PromptedRow("word " * 100, "answer", ("answer",), group="")

    assert isinstance(encode_prompts([fixed], KINDS["own"], 20)[0], NoRoom)


def test_long_and_short_rows_come_back_in_their_order() -> None:
    """The search among long rows does not mix them up."""
    contents = ["short", "long " * 200, "also short", "very long " * 300]
    found = encode_prompts([row(content) for content in contents], KINDS["own"], 90)

    assert [encoded(one).is_cut for one in found] == [False, True, False, True]
    for content, one in zip(contents, found, strict=True):
        assert content[:5] in encoded(one).prompt


@pytest.mark.parametrize(
    ("kind", "begins_with"), [("llama", (1,)), ("gpt2", ()), ("bert", (1,)), ("own", (0,))]
)
def test_a_prompt_begins_as_the_tokenizer_would_begin_it_and_never_ends(
    kind: str, begins_with: tuple[int, ...]
) -> None:
    """Llama's `<s>` and BERT's `[CLS]` come first; BERT's `[SEP]` only after the answer."""
    tokenizer = transformers_tokenizer(prompt_tokenizers.bert()) if kind == "bert" else KINDS[kind]
    (asked,) = encode_prompts([row()], tokenizer, LONG)

    assert tokenizer.begins_with == begins_with
    assert encoded(asked).ids[: len(begins_with)] == begins_with
    assert tokenizer.eos_id not in encoded(asked).ids[len(begins_with) :]


def test_a_folder_that_transformers_saved_is_a_tokenizer(tmp_path: Path) -> None:
    """It gives the ids of the one that was saved, `<s>` included."""
    prompt_tokenizers.llama().save_pretrained(tmp_path)

    for source in (tmp_path, str(tmp_path)):
        loaded = prompt_tokenizer(source)
        assert encode_prompts([row()], loaded, LONG) == encode_prompts([row()], KINDS["llama"], LONG)


class _NoEnd:
    eos_token_id = None

    def __call__(self, text: str) -> Any:
        raise AssertionError(text)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("no/such/folder", ValueError, "No tokenizer of transformers can be loaded from 'no/such/folder'"),
        ("no_such.json", ValueError, "no_such.json does not exist"),
        (7, TypeError, r"tokenizer must be a path or a tokenizer of transformers. Got 7 \(int\)"),
        (_NoEnd(), ValueError, "has no eos_token, so an answer could not end"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    source: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is wrong and what to give."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        prompt_tokenizer(source)
