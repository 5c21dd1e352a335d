"""What a generation task is made of: rows of a prompt and an answer, and the description of a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lighter_freezers.experiments.data.rows import Row

__all__ = ["PromptedRow", "PromptedTask", "RowReader", "prompt_with"]


@dataclass(frozen=True)
class PromptedRow:
    """One question to a language model, with its answer.

    Args:
        prompt: What the model reads, in training and in evaluation alike; it ends where the answer begins.
        target: The answer to learn, without the token that ends it.
        references: All good answers to this prompt; `target` is one of them.
        group: Rows of the same group ask the same thing. They are evaluated once, against all references.
        origin: Rows of the same origin (a dialogue, a table, a premise, a module) never stand on two sides
            of a split that is made here.
        where: The file and the line that it is from, for errors.
        context: From which to which character of the prompt it may be cut if all is too long; the end of this
            part goes first. (0, 0) means nowhere.
    """

    prompt: str
    target: str
    references: tuple[str, ...]
    group: str
    origin: str = ""
    where: str = ""
    context: tuple[int, int] = (0, 0)

    def with_context(self, num_characters: int) -> str:
        """The prompt with only so many characters of the part that may be cut."""
        begin, end = self.context
        return self.prompt[: begin + num_characters] + self.prompt[end:]


RowReader = Callable[[Row], PromptedRow | None]


@dataclass(frozen=True)
class PromptedTask:
    """A generation task: where its data are, how a row becomes a prompt and an answer, and what measures it.

    Args:
        name: As in `task:`.
        metrics: Names in `lighter_freezers.experiments.evaluation.metrics.METRICS`.
        max_new_tokens: Tokens to generate at most, with the one that ends the answer.
        patterns: For each split, globs for the names of its files in a folder or on the hub; the files of the
            first glob that finds any are the split's.
        reader_of: Gives, for a file, what turns its rows into prompts and answers. A row that has no answer
            by the data's own convention becomes None.
        left_out: Which rows these are, in words for a log line.
        hub: Where `source: hub` finds the files: `https://` addresses, or the name of a data set on the hub.
            Empty if they are nowhere on the hub.
    """

    name: str
    metrics: tuple[str, ...]
    max_new_tokens: int
    patterns: Mapping[str, Sequence[str]]
    reader_of: Callable[[Path], RowReader]
    left_out: str = ""
    hub: tuple[str, ...] = ()


def prompt_with(
    instruction: str, parts: Mapping[str, str], answer: str, context: str
) -> tuple[str, tuple[int, int]]:
    """Lay out a prompt: the instruction, each part below its title, and the title of the answer.

    Args:
        instruction: What to do, a sentence.
        parts: Texts by their titles.
        answer: The title of the answer.
        context: The title of the part that may be cut.

    Returns:
        The prompt, and where in it the part that may be cut begins and ends.
    """
    text, span = f"### Instruction: {instruction}\n\n", (0, 0)
    for title, content in parts.items():
        text += f"### {title}:\n"
        if title == context:
            span = (len(text), len(text) + len(content))
        text += f"{content}\n\n"
    return f"{text}### {answer}:\n", span
