"""Prompts and answers as tokens: the answer and its end are learnt, the context is cut, the answer never."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lighter_freezers.experiments.data.prompt_tokenizer import PromptTokenizer
from lighter_freezers.experiments.data.prompts import PromptedRow

__all__ = ["EncodedPrompt", "NoRoom", "encode_answers", "encode_prompts"]

SPARE = 2  # tokens that may stay free when a context is cut: filling them takes as many tries as all others
MAX_GUESSES = 6  # then the search halves what is open, which ends soon whatever the text is


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as tokens, with or without its answer.

    Args:
        prompt: Its text, as it was encoded.
        ids: Its tokens, those before every prompt first, and those of the answer and its end last.
        num_answer: How many of them are the answer's, its end included; 0 for a prompt alone.
        is_cut: Whether a part of the context was left out.
    """

    prompt: str
    ids: tuple[int, ...]
    num_answer: int
    is_cut: bool


@dataclass(frozen=True)
class NoRoom:
    """A row that is too long even without its context.

    Args:
        num_needed: Tokens that it would need without its context.
    """

    num_needed: int


def encode_answers(
    rows: Sequence[PromptedRow], tokenizer: PromptTokenizer, max_length: int
) -> list[EncodedPrompt | NoRoom]:
    """Encode prompts with their answers: `begin prompt answer <eos>`, `max_length` tokens at most.

    The prompt's tokens are those that `encode_prompts` gives for the same text, so that a model is asked as
    it was taught. The answer's are those that the tokenizer gives after this prompt; Llama's would begin a
    text of its own with a space. If a tokenizer joins the last characters of the prompt with the first of
    the answer, the answer is encoded by itself.

    Args:
        rows: What to encode.
        tokenizer: Turns text into tokens.
        max_length: Tokens at most; a longer row loses the end of its context.
    """

    def encode(prompts: Sequence[str], chosen: Sequence[PromptedRow]) -> list[EncodedPrompt]:
        alone = tokenizer.encode_all(prompts)
        targets = [row.target for row in chosen]
        joined = tokenizer.encode_all([p + target for p, target in zip(prompts, targets, strict=True)])
        return [_taught(tokenizer, *parts) for parts in zip(prompts, targets, alone, joined, strict=True)]

    return _cut_to(max_length, rows, encode)


def encode_prompts(
    rows: Sequence[PromptedRow], tokenizer: PromptTokenizer, max_length: int
) -> list[EncodedPrompt | NoRoom]:
    """Encode prompts alone, `begin prompt`, `max_length` tokens at most; see `encode_answers`."""

    def encode(prompts: Sequence[str], chosen: Sequence[PromptedRow]) -> list[EncodedPrompt]:
        return [
            EncodedPrompt(prompt, (*tokenizer.begins_with, *ids), num_answer=0, is_cut=False)
            for prompt, ids in zip(prompts, tokenizer.encode_all(prompts), strict=True)
        ]

    return _cut_to(max_length, rows, encode)


def _taught(
    tokenizer: PromptTokenizer, prompt: str, target: str, alone: list[int], joined: list[int]
) -> EncodedPrompt:
    is_exact = joined[: len(alone)] == alone
    answer = (*(joined[len(alone) :] if is_exact else tokenizer.encode_all([target])[0]), tokenizer.eos_id)
    return EncodedPrompt(prompt, (*tokenizer.begins_with, *alone, *answer), len(answer), is_cut=False)


Encode = Callable[[Sequence[str], Sequence[PromptedRow]], list[EncodedPrompt]]


def _cut_to(max_length: int, rows: Sequence[PromptedRow], encode: Encode) -> list[EncodedPrompt | NoRoom]:
    """Encode all rows, and those that are too long with as much of their context as fits."""
    whole = encode([row.prompt for row in rows], rows)
    encoded: list[EncodedPrompt | NoRoom] = list(whole)
    long = [index for index, one in enumerate(whole) if len(one.ids) > max_length]
    if not long:
        return encoded
    chosen = [rows[index] for index in long]
    bare = encode([row.with_context(0) for row in chosen], chosen)
    searches = [
        _Search(row, max_length, one, len(whole[index].ids))
        for index, row, one in zip(long, chosen, bare, strict=True)
    ]
    while pending := [search for search in searches if search.goes_on()]:  # all in step: few large calls
        prompts = [search.next_prompt() for search in pending]
        for search, one in zip(pending, encode(prompts, [search.row for search in pending]), strict=True):
            search.learn(one)
    for index, search in zip(long, searches, strict=True):
        encoded[index] = search.best
    return encoded


class _Search:
    """How much of the context of a row that is too long fits, by guesses in proportion to tokens."""

    def __init__(self, row: PromptedRow, max_length: int, bare: EncodedPrompt, num_whole: int) -> None:
        self.row = row
        self.best: EncodedPrompt | NoRoom = NoRoom(len(bare.ids))
        self._max_length = max_length
        self._fits = (0, len(bare.ids))  # so many characters do, and make so many tokens
        self._too_many = (row.context[1] - row.context[0], num_whole)  # so many do not
        self._asked = 0
        self._num_asked = 0
        if len(bare.ids) <= max_length:
            self.learn(bare)

    def goes_on(self) -> bool:
        """Whether more of the context may fit."""
        is_open = self._too_many[0] - self._fits[0] > 1
        return isinstance(self.best, EncodedPrompt) and is_open and self._fits[1] + SPARE < self._max_length

    def next_prompt(self) -> str:
        """The prompt with a part of the context that is more than fits so far and less than is too much."""
        (fewest, fewest_tokens), (most, most_tokens) = self._fits, self._too_many
        self._asked = (fewest + most) // 2
        if self._num_asked < MAX_GUESSES:
            share = (self._max_length - fewest_tokens) / max(most_tokens - fewest_tokens, 1)
            self._asked = min(max(fewest + int(share * (most - fewest)), fewest + 1), most - 1)
        self._num_asked += 1
        return self.row.with_context(self._asked)

    def learn(self, encoded: EncodedPrompt) -> None:
        """Take what was encoded if it fits."""
        found = (self._asked, len(encoded.ids))
        if len(encoded.ids) > self._max_length:
            self._too_many = found
        else:
            self._fits = found
            self.best = EncodedPrompt(encoded.prompt, encoded.ids, encoded.num_answer, is_cut=True)
