"""The tokenizer: nothing is lost, every byte is counted, and the cache survives damage and company."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.text_files import text_files
from lighter_freezers.experiments.data.tokenizer import TextTokenizer, cached_tokenizer, tokenizer_of_file
from tests.texts import write_texts

VOCAB_SIZE = 300
HARD = ["", "<eos>", "a <eos>\n", "tab\t cr\r\n nul\0", "é 漢 😀 \u2028 \ufeff", " leading", "trailing  "]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return text_files(write_texts(tmp_path_factory.mktemp("texts")))


@pytest.mark.parametrize("text", HARD)
def test_a_text_comes_back_as_it_was(corpus: Corpus, tmp_path: Path, text: str) -> None:
    """Whatever its characters, those of the special token included, and its bytes are counted exactly."""
    tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    ids = tokenizer.encode(text)
    num_bytes = tokenizer.bytes_per_token()

    assert tokenizer.decode(ids) == text
    assert sum(num_bytes[index] for index in ids) == len(text.encode())
    assert tokenizer.encode_all([text, "x"])[0] == ids


def test_the_end_of_a_text_is_no_text(corpus: Corpus, tmp_path: Path) -> None:
    """`<eos>` is a token of no bytes that no text contains."""
    tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)

    assert tokenizer.bytes_per_token()[tokenizer.eos_id] == 0
    assert tokenizer.eos_id not in tokenizer.encode("a<eos>b")
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eos_id]) == "a"


def test_training_twice_gives_the_same_file(corpus: Corpus, tmp_path: Path) -> None:
    """Byte for byte, and of the size that was asked for."""
    for folder in ("first", "second"):
        tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path / folder)
        assert tokenizer.vocab_size == VOCAB_SIZE

    first, second = sorted(tmp_path.rglob("*.json"))
    assert first.read_bytes() == second.read_bytes()


def test_the_cache_is_used(corpus: Corpus, tmp_path: Path) -> None:
    """A second call reads the file and does not touch it; another size or text has another file."""
    cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    cached_tokenizer(corpus, VOCAB_SIZE + 1, tmp_path)
    cached_tokenizer(Corpus(("other",), ("text",), ("here",), "test"), VOCAB_SIZE, tmp_path)

    assert file.stat().st_mtime_ns == written
    assert len(list(tmp_path.iterdir())) == 3


def test_the_cache_follows_the_environment(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `cache_dir` it is below XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_tokenizer(corpus, VOCAB_SIZE)

    assert len(list((tmp_path / "lighter_freezers").glob("bpe-*.json"))) == 1


@pytest.mark.parametrize("damage", [b"", b'{"version": "1.0", "mod', b"{}", b"\xff\xfe"])
def test_a_damaged_file_is_made_anew(
    corpus: Corpus, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """As it was, with a warning."""
    cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    (file,) = tmp_path.iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage)
    with caplog.at_level("WARNING", logger="lighter_freezers"):
        tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)

    assert tokenizer.decode(tokenizer.encode("thaw")) == "thaw"
    assert file.read_bytes() == intact


def test_a_folder_that_cannot_be_written_is_named(corpus: Corpus, tmp_path: Path) -> None:
    """The error says which folder, and what to give instead."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(RuntimeError, match=r"cannot be kept in .*file.*`cache_dir:`"):
        cached_tokenizer(corpus, VOCAB_SIZE, tmp_path / "file")


def _ask(corpus: Corpus, folder: Path) -> str:
    tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, folder)
    return tokenizer.decode(tokenizer.encode(corpus.test[0]))


def test_two_processes_may_ask_at_once(corpus: Corpus, tmp_path: Path) -> None:
    """Both get a whole tokenizer, and one file is left."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.starmap(_ask, [(corpus, tmp_path)] * 4, chunksize=1)

    assert answers == [corpus.test[0]] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_a_tokenizer_travels(corpus: Corpus, tmp_path: Path) -> None:
    """A pickled one still takes the characters of the special token for text."""
    tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    copy = pickle.loads(pickle.dumps(tokenizer))

    assert copy.encode("a<eos>b") == tokenizer.encode("a<eos>b")


def test_a_saved_tokenizer_is_the_same_in_another_run(corpus: Corpus, tmp_path: Path) -> None:
    """Ids, bytes, and the token that ends a text."""
    tokenizer = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    tokenizer.save(tmp_path / "mine.json")
    again = tokenizer_of_file(tmp_path / "mine.json")

    assert again.encode_all(HARD) == tokenizer.encode_all(HARD)
    assert again.bytes_per_token() == tokenizer.bytes_per_token()
    assert (again.eos_id, again.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)


def foreign(folder: Path, end_of_text: str = "<|endoftext|>", **options: Any) -> Path:
    """A byte-level BPE as the package tokenizers saves one, such as GPT-2's."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.get("add_prefix_space", False))
    bpe.decoder = decoders.ByteLevel()
    if "normalizer" in options:
        bpe.normalizer = options["normalizer"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        HARD,
        trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=[end_of_text], show_progress=False),
    )
    bpe.add_tokens(["<think>"])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{end_of_text} $0", special_tokens=[(end_of_text, bpe.token_to_id(end_of_text))]
    )
    bpe.enable_truncation(3)
    bpe.enable_padding(length=20)
    bpe.save(str(folder / "foreign.json"))
    return folder / "foreign.json"


@pytest.mark.parametrize("text", [*HARD, "a <think> <|endoftext|> long text that nobody may cut"])
def test_a_foreign_tokenizer_counts_every_byte_too(tmp_path: Path, text: str) -> None:
    """Nothing is cut, filled up or put before a text; its token that ends a text is no text."""
    tokenizer = tokenizer_of_file(foreign(tmp_path))
    ids = tokenizer.encode(text)
    num_bytes = tokenizer.bytes_per_token()

    assert tokenizer.decode(ids) == text
    assert sum(num_bytes[index] for index in ids) == len(text.encode())
    assert tokenizer.encode_all([text]) == [ids]
    assert tokenizer.eos_id not in ids
    assert tokenizer.stream([text]).tolist() == [tokenizer.eos_id, *ids, tokenizer.eos_id]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


@pytest.mark.parametrize(
    "options",
    [{"normalizer": normalizers.Lowercase()}, {"normalizer": normalizers.NFC()}, {"add_prefix_space": True}],
)
def test_a_tokenizer_that_changes_texts_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """For labels and bytes could not be told."""
    with pytest.raises(ValueError, match=r"foreign\.json does not give each text back as it was"):
        tokenizer_of_file(foreign(tmp_path, **options))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "other.json").write_text("{}")

    with pytest.raises(ValueError, match=r"missing\.json does not exist .*data\.tokenizer\.save"):
        tokenizer_of_file(tmp_path / "missing.json")
    with pytest.raises(ValueError, match=r"other\.json is not a file of the package tokenizers"):
        tokenizer_of_file(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"has no token that ends a text: none of <eos>, "):
        tokenizer_of_file(foreign(tmp_path, end_of_text="[SEP]"))


def test_a_second_start_encodes_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are kept; another text, another tokenizer or a damaged file is encoded again."""
    calls: list[int] = []
    encode_all = TextTokenizer.encode_all

    def counted(self: TextTokenizer, texts: Any) -> Any:
        calls.append(len(texts))
        return encode_all(self, texts)

    monkeypatch.setattr(TextTokenizer, "encode_all", counted)
    texts = ["one text", "another"]
    first = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path).stream(texts)
    again = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path).stream(texts)
    assert calls == [2]
    assert first.tolist() == again.tolist()

    cached_tokenizer(corpus, VOCAB_SIZE, tmp_path).stream(["one text another"])
    cached_tokenizer(corpus, VOCAB_SIZE - 10, tmp_path).stream(texts)
    assert calls == [2, 1, 2]
    for file in tmp_path.glob("ids-*.npz"):
        file.write_bytes(file.read_bytes()[:40])
    assert cached_tokenizer(corpus, VOCAB_SIZE, tmp_path).stream(texts).tolist() == first.tolist()
    assert calls == [2, 1, 2, 2]


def test_a_cache_that_cannot_be_written_is_done_without(corpus: Corpus, tmp_path: Path) -> None:
    """The ids are the same."""
    kept = cached_tokenizer(corpus, VOCAB_SIZE, tmp_path)
    kept.save(tmp_path / "bpe.json")
    (tmp_path / "file").touch()
    without = tokenizer_of_file(tmp_path / "bpe.json", tmp_path / "file" / "is no folder")

    assert without.stream(["a text"]).tolist() == kept.stream(["a text"]).tolist()
