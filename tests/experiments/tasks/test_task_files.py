"""Where the rows of a task are: folders, archives, fixtures, the network and what is kept of it."""

import io
import json
import lzma
import os
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest

from lighter_freezers.experiments.data.prompts import load_rows
from lighter_freezers.experiments.tasks.generation_tasks import TASKS
from lighter_freezers.experiments.tasks.task_files import (
    FIXTURES,
    default_source,
    fetched,
    files_by_split,
    hub_files,
    split_files,
)
from tests.texts import write_parquet


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        (
            "e2e_nlg",
            ["README.md", "trainset.csv", "devset.csv", "testset.csv", "testset_w_refs.csv"],
            {"train": ["trainset.csv"], "val": ["devset.csv"], "test": ["testset_w_refs.csv"]},
        ),
        (
            "samsum",
            ["train.csv", "validation.csv", "test.csv", "train.parquet"],
            {"train": ["train.csv"], "val": ["validation.csv"], "test": ["test.csv"]},
        ),
        (
            "wikisql",
            ["train.jsonl", "train.tables.jsonl", "train.db", "dev.jsonl", "dev.tables.jsonl", "test.jsonl"],
            {"train": ["train.jsonl"], "val": ["dev.jsonl"], "test": ["test.jsonl"]},
        ),
        (
            "multi_nli",
            [
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "data/validation_matched-00000-of-00001.parquet",
                "data/validation_mismatched-00000-of-00001.parquet",
            ],
            {
                "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
                "val": [],
                "test": ["data/validation_matched-00000-of-00001.parquet"],
            },
        ),
        (
            "multi_nli",
            [
                "multinli_1.0_train.jsonl",
                "multinli_1.0_dev_matched.jsonl",
                "multinli_1.0_dev_mismatched.jsonl",
            ],
            {"train": ["multinli_1.0_train.jsonl"], "val": [], "test": ["multinli_1.0_dev_matched.jsonl"]},
        ),
        (
            "samsum",
            ["samsum/train/0000.parquet", "samsum/validation/0000.parquet", "samsum/test/0000.parquet"],
            {
                "train": ["samsum/train/0000.parquet"],
                "val": ["samsum/validation/0000.parquet"],
                "test": ["samsum/test/0000.parquet"],
            },
        ),
        (
            "samsum",
            ["train/train.jsonl", "train/val.jsonl", "train/test.jsonl"],
            {"train": ["train/train.jsonl"], "val": ["train/val.jsonl"], "test": ["train/test.jsonl"]},
        ),
    ],
)
def test_files_are_known_by_their_names(task: str, names: list[str], expected: dict[str, Any]) -> None:
    """Those of the data sets and of the hub; a file never is in two splits."""
    assert files_by_split(TASKS[task], names) == expected


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    """WikiSQL's, as it is distributed: rows and tables in one folder of a tar.bz2."""
    archive = tmp_path / "data.tar.bz2"
    with tarfile.open(archive, "w:bz2") as opened:
        opened.add(FIXTURES / "wikisql", arcname="data")
    from_archive = split_files(TASKS["wikisql"], str(archive), tmp_path / "cache")
    from_folder = split_files(TASKS["wikisql"], "fixture")
    targets = [
        [row.target for row in load_rows(TASKS["wikisql"], f.train).rows] for f in (from_archive, from_folder)
    ]
    before = from_archive.train[0].stat().st_mtime_ns
    again = split_files(TASKS["wikisql"], str(archive), tmp_path / "cache")

    assert targets[0] == targets[1]
    assert again == from_archive
    assert again.train[0].stat().st_mtime_ns == before


def test_half_an_archive_is_an_error(tmp_path: Path) -> None:
    """And it is unpacked when the whole one is there."""
    archive = tmp_path / "data.tar.bz2"
    with tarfile.open(archive, "w:bz2") as opened:
        opened.add(FIXTURES / "wikisql", arcname="data")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ValueError, match=r"data\.tar\.bz2 cannot be read as an archive.*Fetch it again"):
        split_files(TASKS["wikisql"], str(archive), tmp_path / "cache")


@pytest.mark.parametrize(
    ("task", "source", "message"),
    [
        (
            "samsum",
            "fixtur",
            r"'fixtur' is neither a folder nor .*samsum knows 'fixture', 'hub'",
        ),
        ("samsum", "standard_library", "neither a folder nor an archive"),
        ("docstrings", "fixture", "docstrings knows 'standard_library', 'hub:OWNER/NAME', and the path"),
        ("docstrings", "hub", "docstrings has no data on the hub"),
        ("samsum", "empty", r"empty has no files for samsum: expected names such as train\*, val\*, test\*"),
        ("samsum", "one.csv", r"'one\.csv' is one file. Give it as train_file"),
    ],
)
def test_a_source_that_is_none_is_refused(
    task: str, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what there is instead."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.csv").write_text("id,dialogue,summary\n")

    with pytest.raises(ValueError, match=message):
        split_files(TASKS[task], source, tmp_path)


def test_only_the_docstrings_have_real_data_by_themselves() -> None:
    """The others say that they are fixtures."""
    assert {name: default_source(task) for name, task in TASKS.items()} == {
        "docstrings": "standard_library",
        **dict.fromkeys(["e2e_nlg", "samsum", "wikisql", "multi_nli", "squad", "sst2"], "fixture"),
    }
    assert split_files(TASKS["samsum"], "fixture").source == "fixtures of samsum, for trying out only"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a real server with the fixtures of E2E NLG."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(FIXTURES / "e2e_nlg")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once(site: str, tmp_path: Path) -> None:
    """Byte for byte, and the next run needs no network."""
    file = fetched(f"{site}/devset.csv", tmp_path / "kept", "e2e_nlg")

    assert file.read_bytes() == (FIXTURES / "e2e_nlg" / "devset.csv").read_bytes()
    assert fetched("http://127.0.0.1:1/devset.csv", tmp_path / "kept", "e2e_nlg") == file
    assert [path.name for path in file.parent.iterdir()] == ["devset.csv"]


def test_each_address_has_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that changes its addresses, files of one name at two of them, and an address of the user's."""
    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: io.BytesIO(address.encode()))
    for version in ("v1", "v2"):
        addresses = tuple(f"https://x/{version}/{split}/0.csv?download=1" for split in ("train", "test"))
        files = split_files(replace(TASKS["samsum"], hub=addresses), "hub", tmp_path)
        assert [file.read_text() for file in (*files.train, *files.test)] == list(addresses)

    files = split_files(TASKS["samsum"], "hub:https://x/v3/train.csv", tmp_path)
    assert [file.read_text() for file in files.train] == ["https://x/v3/train.csv"]


def test_what_cannot_be_fetched_names_the_way_out(site: str, tmp_path: Path) -> None:
    """A page that is not there, and no network at all; nothing is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/devset.csv"
        for address, reason in ((f"{site}/none.csv", "404"), (closed, "Connection refused")):
            message = rf"e2e_nlg: {address} cannot be fetched .*{reason}.*train_file.*source: fixture"
            with pytest.raises(RuntimeError, match=message):
                fetched(address, tmp_path / "kept", "e2e_nlg")
    assert not (tmp_path / "kept").exists()


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of `datasets` with what a run fetched before, and no network."""
    commit = "0" * 40
    folder = tmp_path / "kept" / "knkarthick___samsum" / "default" / "0.0.0" / commit
    for split in ("train", "validation", "test"):
        rows = [{"id": split, "dialogue": f"A: {split}?", "summary": "They talk."}]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = datasets.load_dataset_builder(
        "json",
        data_files={split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")},
        cache_dir=str(tmp_path / "made"),
    )
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, folder)
    for file in folder.glob("json-*.arrow"):
        file.rename(folder / file.name.replace("json-", "samsum-"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"builder_name": "parquet", "dataset_name": "samsum", "config_name": "default"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize("source", ["hub", "hub:knkarthick/samsum"])
def test_what_the_hub_gave_before_is_found_without_a_network(source: str, offline_hub: Path) -> None:
    """In the cache of `datasets`, split by split."""
    files = split_files(TASKS["samsum"], source)

    assert files.train == (offline_hub / "samsum-train.arrow",)
    (row,) = load_rows(TASKS["samsum"], files.val).rows
    assert (row.target, row.where) == ("They talk.", f"{offline_hub / 'samsum-validation.arrow'}, row 1")
    assert files.source == f"samsum from {source}"


def test_a_folder_in_the_layout_of_the_hub_is_read_like_one_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its README names the splits; several files for one of them, nulls and other types are read; no bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))
    folder = tmp_path / "OWNER" / "NAME"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: data/learn-*.parquet}\n  - {split: test, path: data/ask.parquet}\n---\n"
    )
    rows = {"premise": "It rains.", "hypothesis": "It is wet."}
    for name, label in {"learn-0": 0, "learn-1": -1, "ask": 2}.items():
        write_parquet(folder / "data" / f"{name}.parquet", [{**rows, "label": label, "genre": None}])
    files = split_files(TASKS["multi_nli"], f"hub:{folder}")
    train, test = (load_rows(TASKS["multi_nli"], files.of(split)) for split in ("train", "test"))

    assert ([row.target for row in train.rows], train.num_without_answer) == (["entailment"], 1)
    assert [row.target for row in test.rows] == ["contradiction"]
    assert files.val == ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("source", ["me@host", "~/me@host"])
def test_a_folder_in_the_layout_of_the_hub_may_have_any_name(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `@` before no revision, and the home folder; its rows are on disk, whatever `datasets` may keep."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 2**30)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@host").mkdir()
    write_parquet(tmp_path / "me@host" / "train.parquet", [{"dialogue": "A: b", "summary": "They talk."}])

    (row,) = load_rows(TASKS["samsum"], split_files(TASKS["samsum"], f"hub:{source}").train).rows
    assert row.target == "They talk."


def test_a_data_set_without_the_splits_of_a_task_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the splits that it has."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))
    (tmp_path / "NAME").mkdir()
    (tmp_path / "NAME" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: notes, path: rows.parquet}\n---\n"
    )
    write_parquet(tmp_path / "NAME" / "rows.parquet", [{"a": 1}])
    with pytest.raises(ValueError, match=r"has no files for samsum: expected names such as train.*got notes"):
        split_files(TASKS["samsum"], f"hub:{tmp_path / 'NAME'}")


@pytest.mark.usefixtures("offline_hub")
def test_a_data_set_that_the_hub_does_not_give_names_the_way_out() -> None:
    """The hub's reason is in the error."""
    message = "multi_nli: the data set nyu-mll/multi_nli of the hub cannot be fetched .*source: fixture"
    with pytest.raises(RuntimeError, match=message):
        hub_files(TASKS["multi_nli"], "nyu-mll/multi_nli")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tgz", "tar.xz", "zip"])
@pytest.mark.parametrize("folders", ["{split}/{name}", "data/{split}/{name}", "data/{split}/part/of/{name}"])
def test_an_archive_keeps_files_of_equal_names(suffix: str, folders: str, tmp_path: Path) -> None:
    """The split is that of the nearest folder; no file replaces another."""
    kinds = {
        "tar": "tar",
        "tar.gz": "gztar",
        "tgz": "gztar",
        "tar.bz2": "bztar",
        "tar.xz": "xztar",
        "zip": "zip",
    }
    for split in ("train", "val", "test"):
        for name in ("0000.jsonl", "0001.jsonl"):
            file = tmp_path / "rows" / folders.format(split=split, name=name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"mr": f"name[{split}]", "ref": name}))
    made = shutil.make_archive(str(tmp_path / "made"), kinds[suffix], tmp_path / "rows")
    Path(made).rename(tmp_path / f"rows.{suffix}")
    task = TASKS["e2e_nlg"]
    found = split_files(task, str(tmp_path / f"rows.{suffix}"), tmp_path / "cache")
    for split in ("train", "val", "test"):
        rows = [json.loads(path.read_text()) for path in found.of(split)]
        assert rows == [{"mr": f"name[{split}]", "ref": name} for name in ("0000.jsonl", "0001.jsonl")]


def tar_of(folder: Path, **contents: bytes) -> Path:
    """A tar archive with these members."""
    with tarfile.open(folder / "rows.tar", "w") as opened:
        for arcname, content in contents.items():
            member = tarfile.TarInfo(arcname)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return folder / "rows.tar"


def test_a_member_of_an_archive_stays_below_the_cache(tmp_path: Path) -> None:
    """One above it is refused with the whole archive; one at the root is below the folder."""
    row = json.dumps({"mr": "a", "ref": "b"}).encode()
    archive = str(tar_of(tmp_path, **{"../../train.jsonl": row}))
    with pytest.raises(ValueError, match="cannot be read as an archive: .*outside the destination"):
        split_files(TASKS["e2e_nlg"], archive, tmp_path / "deep" / "cache")
    assert not list(tmp_path.rglob("train.jsonl"))

    archive = str(tar_of(tmp_path, **{f"/{tmp_path}/train.jsonl": row, "a/train.jsonl": row}))
    found = split_files(TASKS["e2e_nlg"], archive, tmp_path / "deep" / "cache")
    assert len(found.train) == 2
    assert all(file.is_relative_to(tmp_path / "deep" / "cache") for file in found.train)
    assert not (tmp_path / "train.jsonl").exists()


def test_a_member_of_a_zip_archive_is_never_left_out(tmp_path: Path) -> None:
    """One above the folder is refused; two dots in a name are a name, and the suffix may be in capitals."""
    for name, member in {"above.zip": "../train.csv", "ROWS.ZIP": "train..v1.csv"}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("test.csv", "mr,ref\na,b")
            archive.writestr(member, "mr,ref\na,b")
    with pytest.raises(ValueError, match=r"above\.zip cannot be read .*\.\./train\.csv is outside"):
        split_files(TASKS["e2e_nlg"], str(tmp_path / "above.zip"), tmp_path / "cache")
    found = split_files(TASKS["e2e_nlg"], str(tmp_path / "ROWS.ZIP"), tmp_path / "cache")
    assert [file.name for file in (*found.train, *found.test)] == ["train..v1.csv", "test.csv"]

    tar_of(tmp_path, **{"train.csv": b"mr,ref\na,b"}).rename(tmp_path / "ROWS.TAR")
    assert split_files(TASKS["e2e_nlg"], str(tmp_path / "ROWS.TAR"), tmp_path / "cache").train


def test_an_archive_that_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    """One with a password, and one with damage in the middle of what it packs."""
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("train.csv", "mr,ref\na,b")
    content = bytearray((tmp_path / "locked.zip").read_bytes())
    content[6] |= 1  # the flags of the member, there and in the directory of the archive
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    damaged = bytearray(lzma.compress(tar_of(tmp_path, **{"train.csv": os.urandom(30_000)}).read_bytes()))
    damaged[15_000:15_050] = bytes(50)
    (tmp_path / "damaged.tar.xz").write_bytes(damaged)

    for name, reason in {"locked.zip": ".*encrypted", "damaged.tar.xz": "Corrupt input data"}.items():
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an archive: {reason}"):
            split_files(TASKS["e2e_nlg"], str(tmp_path / name), tmp_path / "cache")


def test_a_changed_archive_is_unpacked_again(tmp_path: Path) -> None:
    """At the same path; the content counts."""
    for text in (b"first", b"other"):
        archive = tar_of(tmp_path, **{"train.csv": b"mr,ref\na," + text})
        os.utime(archive, (1, 1))
        (file,) = split_files(TASKS["e2e_nlg"], str(archive), tmp_path / "cache").train
        assert file.read_bytes().endswith(text)


def test_a_cache_that_cannot_take_an_archive_is_named(tmp_path: Path) -> None:
    """It is no fault of the archive."""
    (tmp_path / "file").touch()
    archive = str(tar_of(tmp_path, **{"train.csv": b"mr,ref\na,b"}))
    with pytest.raises(RuntimeError, match=r"rows\.tar cannot be kept in .*file: .*`cache_dir:`"):
        split_files(TASKS["e2e_nlg"], archive, tmp_path / "file")


def test_what_macos_writes_beside_each_file_is_no_data(tmp_path: Path) -> None:
    """Its archives have `train/._0.jsonl` beside `train/0.jsonl`."""
    with tarfile.open(tmp_path / "rows.tar", "w") as opened:
        for arcname, content in {"train/0.jsonl": b"{}\n", "train/._0.jsonl": b"\x00\x05\x16\x07"}.items():
            member = tarfile.TarInfo(arcname)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    found = split_files(TASKS["e2e_nlg"], str(tmp_path / "rows.tar"), tmp_path / "cache")
    assert [file.name for file in found.train] == ["0.jsonl"]


@pytest.mark.parametrize("link", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_an_archive_is_the_file_it_names(link: bytes, tmp_path: Path) -> None:
    """As tar stores the second name of one file; a link to nothing is an error."""
    (tmp_path / "trainset.csv").write_text("mr,ref\nname[A],a\n")
    member = tarfile.TarInfo("testset_w_refs.csv")
    member.type, member.linkname = link, "trainset.csv"
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "trainset.csv", "trainset.csv")
        archive.addfile(member)
    files = split_files(TASKS["e2e_nlg"], source=str(tmp_path / "data.tar"), cache_dir=tmp_path)
    assert [path.read_text() for path in files.test] == ["mr,ref\nname[A],a\n"]

    with tarfile.open(tmp_path / "half.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match="cannot be read as an archive: .*csv"):
        split_files(TASKS["e2e_nlg"], source=str(tmp_path / "half.tar"), cache_dir=tmp_path)


@pytest.mark.parametrize("link", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_dead_link_only_matters_where_it_is_read(link: bytes, tmp_path: Path) -> None:
    """An archive with one elsewhere is read; as the file of a split it is named, in a folder too."""
    for name, dead in {"readable": "docs/figure.csv", "broken": "val/rows.csv"}.items():
        tar_of(tmp_path, **{"train/rows.csv": b"mr,ref\na,b"}).rename(tmp_path / f"{name}.tar")
        member = tarfile.TarInfo(dead)
        member.type, member.linkname = link, "left/out.csv"
        with tarfile.open(tmp_path / f"{name}.tar", "a") as archive:
            archive.addfile(member)
    found = split_files(TASKS["e2e_nlg"], str(tmp_path / "readable.tar"), tmp_path / "cache")
    assert [file.name for file in (*found.train, *found.val)] == ["rows.csv"]
    with pytest.raises(ValueError, match=r"broken\.tar cannot be read as an archive: rows\.csv is a link to"):
        split_files(TASKS["e2e_nlg"], str(tmp_path / "broken.tar"), tmp_path / "cache")

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.csv").symlink_to("gone.csv")
    with pytest.raises(ValueError, match=r"folder cannot be read as a folder: train\.csv is a link"):
        split_files(TASKS["e2e_nlg"], str(tmp_path / "folder"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("target", "said"),
    [("b/figure.csv", r"figure\.csv is a link to nothing"), ("", "cannot be read as an archive")],
)
def test_a_hard_link_is_named_where_the_archive_has_no_such_file(
    target: str, said: str, tmp_path: Path
) -> None:
    """Here `b` is another name of the folder `a`, in which a link leads to nothing."""
    members = [
        ("a/figure.csv", tarfile.SYMTYPE, "gone.csv"),
        ("b", tarfile.SYMTYPE, "a"),
        ("train/figure.csv", tarfile.LNKTYPE, target),
    ]
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for name, kind, linkname in members if target else members[-1:]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, linkname
            archive.addfile(member)
    with pytest.raises(ValueError, match=rf"rows\.tar .*{said}"):
        split_files(TASKS["e2e_nlg"], str(tmp_path / "rows.tar"), tmp_path / "cache")


@pytest.mark.parametrize("link", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("target", ["../../outside.csv", "{folder}/outside.csv"])
def test_a_link_out_of_an_archive_is_refused(link: bytes, target: str, tmp_path: Path) -> None:
    """With the whole archive, wherever the link stands."""
    (tmp_path / "outside.csv").write_text("mr,ref\na,secret")
    member = tarfile.TarInfo("docs/figure.csv")
    member.type, member.linkname = link, target.format(folder=tmp_path)
    with tarfile.open(tar_of(tmp_path, **{"train.csv": b"mr,ref\na,b"}), "a") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"rows\.tar cannot be read as an archive: .*link"):
        split_files(TASKS["e2e_nlg"], str(tmp_path / "rows.tar"), tmp_path / "cache")


def test_a_dead_link_behind_another_leads_nowhere_else(tmp_path: Path) -> None:
    """`a/a` is the folder itself, so two steps up from there are outside of it."""
    (tmp_path / "gone.csv").write_text("mr,ref\na,secret")
    around, dead = tarfile.TarInfo("a"), tarfile.TarInfo("a/a/train.csv")
    around.type, around.linkname = tarfile.SYMTYPE, "."
    dead.type, dead.linkname = tarfile.LNKTYPE, "gone.csv"
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        archive.addfile(around)
        archive.addfile(dead)
    with pytest.raises(ValueError, match=r"rows\.tar cannot be read as an archive: .*outside"):
        split_files(TASKS["e2e_nlg"], str(tmp_path / "rows.tar"), tmp_path / "cache")
