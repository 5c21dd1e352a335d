"""Encodes prompts and answers; a row that is too long loses part of its context, never of its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lighter_freezers.experiments.data.prompt_tokenizer import PromptTokenizer
from lighter_freezers.experiments.data.prompts import PromptedRow

__all__ = ["EncodedPrompt", "NoRoom", "encode_answers", "encode_prompts"]

SPARE = 2  # tokens that may stay unused after a cut: filling the last ones doubles the tries
MAX_GUESSES = 6  # then it bisects, which ends after log2(characters) tries for any text


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as tokens, with or without its answer.

    Args:
        prompt: The text that was encoded.
        ids: Its tokens: first those that precede every prompt, last those of the answer and its end.
        num_answer: How many of them belong to the answer and its end; 0 for a prompt alone.
        is_cut: Whether part of the context was removed.
    """

    prompt: str
    ids: tuple[int, ...]
    num_answer: int
    is_cut: bool


@dataclass(frozen=True)
class NoRoom:
    """A row that is too long even without its context.

    Args:
        num_needed: The number of tokens that it needs without its context.
    """

    num_needed: int


def encode_answers(
    rows: Sequence[PromptedRow], tokenizer: PromptTokenizer, max_length: int
) -> list[EncodedPrompt | NoRoom]:
    """Encode prompts with their answers: `begin prompt answer <eos>`, `max_length` tokens at most.

    The prompt's tokens are those of `encode_prompts` for the same text, so that training and generation
    agree. The answer's tokens are those that the tokenizer gives after this prompt; alone, Llama's would
    start with a space. If a tokenizer joins the last characters of the prompt with the first of the answer,
    the answer is encoded separately.

    Args:
        rows: The rows to encode.
        tokenizer: The tokenizer.
        max_length: The most tokens of a row; a longer one loses the end of its context.
    """

    def encode(prompts: Sequence[str], chosen: Sequence[PromptedRow]) -> list[EncodedPrompt]:
        alone = tokenizer.encode_all(prompts)
        targets = [row.target for row in chosen]
        joined = tokenizer.encode_all([p + target for p, target in zip(prompts, targets, strict=True)])
        answers = [both[len(ids) :] for ids, both in zip(alone, joined, strict=True)]
        apart = [
            number
            for number, (ids, both) in enumerate(zip(alone, joined, strict=True))
            if both[: len(ids)] != ids
        ]
        if apart:
            for number, ids in zip(apart, tokenizer.encode_all([targets[n] for n in apart]), strict=True):
                answers[number] = ids
        start, end = tokenizer.begins_with, tokenizer.eos_id
        return [
            EncodedPrompt(prompt, (*start, *ids, *answer, end), num_answer=len(answer) + 1, is_cut=False)
            for prompt, ids, answer in zip(prompts, alone, answers, strict=True)
        ]

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
    while pending := [search for search in searches if search.goes_on()]:  # all at once: few large calls
        prompts = [search.next_prompt() for search in pending]
        for search, one in zip(pending, encode(prompts, [search.row for search in pending]), strict=True):
            search.learn(one)
    for index, search in zip(long, searches, strict=True):
        encoded[index] = search.best
    return encoded


class _Search:
    """Finds how much of the context fits into a row that is too long, by interpolation search.

    The number of tokens of a cut text is only known by encoding it, and a tokenizer may join tokens across
    the cut, so the length cannot be computed. Tokens grow almost linearly with characters, so interpolation
    needs fewer encodings than bisection; after MAX_GUESSES it bisects, which limits their number.
    """

    def __init__(self, row: PromptedRow, max_length: int, bare: EncodedPrompt, num_whole: int) -> None:
        self.row = row
        self.best: EncodedPrompt | NoRoom = NoRoom(len(bare.ids))
        self._max_length = max_length
        self._fits = (0, len(bare.ids))  # characters of context that fit, and tokens of the row with them
        self._too_many = (row.context[1] - row.context[0], num_whole)  # characters and tokens that do not fit
        self._asked = 0
        self._num_asked = 0
        if len(bare.ids) <= max_length:
            self.learn(bare)

    def goes_on(self) -> bool:
        """Whether more of the context may fit."""
        is_open = self._too_many[0] - self._fits[0] > 1
        return isinstance(self.best, EncodedPrompt) and is_open and self._fits[1] + SPARE < self._max_length

    def next_prompt(self) -> str:
        """The prompt with the next length of context to try, between what fits and what does not."""
        (fewest, fewest_tokens), (most, most_tokens) = self._fits, self._too_many
        self._asked = (fewest + most) // 2
        if self._num_asked < MAX_GUESSES:
            share = (self._max_length - fewest_tokens) / max(most_tokens - fewest_tokens, 1)
            self._asked = min(max(fewest + int(share * (most - fewest)), fewest + 1), most - 1)
        self._num_asked += 1
        return self.row.with_context(self._asked)

    def learn(self, encoded: EncodedPrompt) -> None:
        """Narrow the search, and keep the encoded prompt if it fits."""
        found = (self._asked, len(encoded.ids))
        if len(encoded.ids) > self._max_length:
            self._too_many = found
        else:
            self._fits = found
            self.best = EncodedPrompt(encoded.prompt, encoded.ids, encoded.num_answer, is_cut=True)
