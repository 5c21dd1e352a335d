"""Labels of the tokens of Python source: decoded, and against what the source says; the cache."""

import re
from pathlib import Path

import pytest
import torch

from lighter_freezers.experiments.data.batches import TokenWindows
from lighter_freezers.experiments.data.corpus import SPLITS, Corpus
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, cached_tokenizer
from lighter_freezers.experiments.tasks.code_labels import CLASS_NAMES
from lighter_freezers.experiments.tasks.labelled_code import LabelledCode, cached_classes
from lighter_freezers.experiments.tasks.sequence_scores import DocumentationTask
from lighter_freezers.experiments.tasks.token_classes import CodeClassesTask

MODULES = (
    '"""A module."""\n\nimport os\n\n\ndef area(width, height=2):\n    return width * height  # plain\n',
    "class Box:\n    def __init__(self):\n        self.size = os.stat('box').st_size\n",
    "for number in range(10):\n    print(number, 3.5, 'a b c', not None)\n",
)
CORPUS = Corpus(train=MODULES, val=MODULES[:1], test=MODULES[1:2], source="three modules")
PATTERNS = {
    "keyword": r"\b(import|def|return|class|for|in|not|None)\b",
    "string": r'""".*?"""|\'.*?\'',
    "comment": r"# plain",
    "def": r"(?<=def )\w+|(?<=class )\w+",
    "param": r"(?<=\()width|height(?==)|(?<=\()self",
    "call": r"\b(stat|range|print)(?=\()",
    "attr": r"(?<=\.)(size|st_size)",
    "name": r"(?<=import )os|\bos(?=\.)|width(?= \*)",
    "number": r"(?<![\w'])\d[\d.]*",
    "other": r"[():,*=]",
}
IGNORED = torch.nn.CrossEntropyLoss().ignore_index


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    return cached_tokenizer(CORPUS, 300, tmp_path)


def labelled(tokenizer: TextTokenizer, folder: Path) -> list[tuple[str, str | None]]:
    """Each token of the training split as text, with the name of its class."""
    code = LabelledCode(CORPUS, "train", tokenizer, folder)
    return [
        (tokenizer.decode([token]), None if label == IGNORED else CLASS_NAMES[label])
        for token, label in zip(code.ids.tolist(), code.labels().tolist(), strict=True)
    ]


def test_tokens_spell_the_modules(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """With `<eos>` around each, which counts nothing."""
    tokens = labelled(tokenizer, tmp_path)
    ends = [place for place, (text, _) in enumerate(tokens) if text == ""]

    assert "".join(text for text, _ in tokens) == "".join(MODULES)
    assert [tokens[place][1] for place in ends] == [None] * 4
    assert (ends[0], ends[-1]) == (0, len(tokens) - 1)


def test_labels_say_what_the_source_says(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Each class found again in the text by an expression of its own, at the tokens that begin there."""
    begins, text = {}, ""
    for piece, label in labelled(tokenizer, tmp_path):
        begins[len(text) + len(piece) - len(piece.lstrip())] = label
        text += piece
    for name, pattern in PATTERNS.items():
        places = [match.start() for match in re.finditer(pattern, text)]
        seen = [begins[place] for place in places if place in begins]
        assert seen, name
        assert set(seen) == {name}


def test_blank_tokens_count_nothing(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Outside of strings; every other token has a class."""
    for text, label in labelled(tokenizer, tmp_path):
        assert (label is None) == (not text.strip()) or label in ("string", "comment")


def test_windows_are_those_of_the_language_model(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The same tokens at the same places, so pretraining and labels speak of the same text."""
    classes = CodeClassesTask(CORPUS, tmp_path).sequences("train", tokenizer, 8, 5)
    texts = TokenWindows(CORPUS.train, tokenizer, 8, 5)

    assert len(classes) == len(texts) == 5
    assert torch.equal(classes[range(5)]["input_ids"], texts[range(5)]["input_ids"])
    assert classes[[3]]["targets"].shape == (1, 8)
    assert set(classes[[0]]) == {"input_ids", "targets"}


def test_a_score_is_the_share_of_documentation(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Counted again in the decoded windows of modules whose documentation can be found by eye."""
    module = "x = 1\n# abc\ny = 'de' + z\n" * 20
    corpus = Corpus((module,), (module,), (module,), "one module")
    sequences = DocumentationTask(corpus, tmp_path, cls_token_id=777).sequences("val", tokenizer, 12, None)
    batch = sequences[range(len(sequences))]
    text = "".join(tokenizer.decode(row[1:].tolist()) for row in batch["input_ids"])
    flags = re.sub(r"# abc|'de'", lambda match: "D" * len(match[0]), module)
    place = 0

    assert module.startswith(text)
    assert batch["input_ids"][:, 0].tolist() == [777] * len(sequences)
    assert batch["input_ids"].shape == (len(sequences), 12)
    assert batch["targets"].dtype == torch.float32
    for row, score in zip(batch["input_ids"], batch["targets"].tolist(), strict=True):
        size = len(tokenizer.decode(row[1:].tolist()))
        assert score == pytest.approx(flags[place : place + size].count("D") / size)
        place += size


def test_cls_is_a_token_of_its_own(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """By default the first id that the text does not have."""
    sequences = DocumentationTask(CORPUS, tmp_path).sequences("train", tokenizer, 8, None)
    ids = sequences[range(len(sequences))]["input_ids"]

    assert (ids == tokenizer.vocab_size).sum(dim=1).tolist() == [1] * len(sequences)


def test_the_classes_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each split, then read from the cache."""
    before = {split: cached_classes(CORPUS, split, tmp_path) for split in SPLITS}
    assert len(list(tmp_path.glob("classes-*.npz"))) == 3
    monkeypatch.delattr("lighter_freezers.experiments.tasks.labelled_code.character_classes")

    for split in SPLITS:
        assert (cached_classes(CORPUS, split, tmp_path) == before[split]).all()
        assert len(before[split]) == CORPUS.num_bytes(split)


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_damaged_classes_are_made_again(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning: an empty file, another one, and one that is cut."""
    before = cached_classes(CORPUS, "val", tmp_path)
    (file,) = tmp_path.glob("classes-*.npz")
    file.write_bytes(damage)
    with caplog.at_level("WARNING", logger="lighter_freezers"):
        again = cached_classes(CORPUS, "val", tmp_path)

    assert (again == before).all()
    assert "damaged" in caplog.text


@pytest.mark.parametrize("task", [CodeClassesTask, DocumentationTask])
def test_too_short_a_text_is_refused(task: type, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The error says how long it is."""
    with pytest.raises(ValueError, match=r"The test text has \d+ tokens: too few .* block_size=500"):
        task(CORPUS, tmp_path).sequences("test", tokenizer, 500, None)
