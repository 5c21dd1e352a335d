"""The documents say what is true: their code runs, their YAML builds, their links lead somewhere."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)
SNIPPET = re.compile(r'^ *--8<-- "(?P<path>[^"]+)"$', re.M)
RESULTS = re.compile(r"<!-- results: .*?<!-- end: .*? -->", re.S)  # written by benchmarks.render
LINK = re.compile(r"\]\((?!https?://|#)(?P<target>[^)#\s]+)")


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    line: int
    code: str


def included(snippet: re.Match[str]) -> str:
    """The file that a page includes; that it exists is a test of its own."""
    path = ROOT / snippet["path"]
    return path.read_text() if path.exists() else ""


def blocks(language: str) -> list[Block]:
    """All blocks of a language, in the order of the pages, with the files they include."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["language"] == language:
                code = SNIPPET.sub(included, match["code"])
                line = text.count("\n", 0, match.start("code"))
                found.append(Block(page.relative_to(ROOT).as_posix(), line, dedent(code)))
    return found


def block_name(block: Block) -> str:
    """Where it stands."""
    return f"{block.page}:{block.line + 1}"


PYTHON, YAML, BASH = blocks("python"), blocks("yaml"), blocks("bash")


@pytest.mark.parametrize("block", PYTHON, ids=block_name)
def test_python_in_the_documents_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block stands alone, and its assertions hold."""
    monkeypatch.chdir(tmp_path)
    code = compile("\n" * block.line + block.code, block.page, "exec")

    exec(code, {"__name__": "example"})


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a config that names something to build."""
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(child)


def with_variables(node: Any, variables: dict[str, Any]) -> Any:
    """A config in which the value stands for each `@vars::name`, as lighter reads it."""
    if isinstance(node, dict):
        return {key: with_variables(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [with_variables(value, variables) for value in node]
    return variables[node.removeprefix("@vars::")] if str(node).startswith("@vars::") else node


def imported(path: str) -> Any:
    """What a dotted path stands for."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def arguments(target: dict[str, Any]) -> dict[str, Any]:
    """What a config passes on."""
    return {key: value for key, value in target.items() if not key.startswith("_")}


@pytest.mark.parametrize("block", YAML, ids=block_name)
def test_yaml_in_the_documents_builds(block: Block) -> None:
    """It can be read, what it names exists and takes these arguments, and its callbacks can be made."""
    from pytorch_lightning import Callback

    config = yaml.safe_load(block.code)
    for target in targets(
        with_variables(config, (config if isinstance(config, dict) else {}).get("vars", {}))
    ):
        named = imported(target["_target_"])
        if inspect.isclass(named) and issubclass(named, Callback):
            named(**arguments(target))
        elif "_args_" not in target:
            inspect.signature(named).bind_partial(**arguments(target))


def doubled_keys(node: yaml.Node | None) -> list[str]:
    """Every key that stands twice in one mapping, where YAML silently takes the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        inside = [key for _, value in node.value for key in doubled_keys(value)]
        return [key for key in set(keys) if keys.count(key) > 1] + inside
    children = node.value if isinstance(node, yaml.SequenceNode) else ()
    return [key for child in children for key in doubled_keys(child)]


def test_no_key_stands_twice_in_one_mapping() -> None:
    """In the configs, in the documents, and in the examples of docstrings."""
    assert doubled_keys(yaml.compose("a: [{b: 1, b: 2}]")) == ["b"]
    texts = {block_name(block): block.code for block in YAML}
    texts |= {path.name: path.read_text() for path in (ROOT / "configs").rglob("*.y*ml")}
    for path in (ROOT / "lighter_freezers").rglob("*.py"):
        for match in FENCE.finditer(path.read_text()):
            if match["language"] == "yaml":
                texts[f"{path.name}:{match.start()}"] = dedent(match["code"])

    doubled = {name: doubled_keys(yaml.compose(text)) for name, text in texts.items()}

    assert {name: keys for name, keys in doubled.items() if keys} == {}


@pytest.mark.parametrize("block", BASH, ids=block_name)
def test_commands_in_the_documents_name_what_exists(block: Block) -> None:
    """Each config, script and module of ours in a command is there."""
    paths = re.findall(r"(?<![\w./])((?:configs|benchmarks|\.ci)/[\w./-]+)", block.code)
    modules = re.findall(r"-m ((?:benchmarks|lighter_freezers)[\w.]*)", block.code)

    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [module for module in modules if not _is_module(module)] == []


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_in_the_documents_lead_somewhere(page: Path) -> None:
    """Every relative link, and every included file, is in the checkout."""
    text = page.read_text()
    linked = [page.parent / match["target"] for match in LINK.finditer(text)]
    files = [ROOT / match["path"] for match in SNIPPET.finditer(text)]

    assert [path for path in [*linked, *files] if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_line_of_prose_holds_one_sentence(page: Path) -> None:
    """One sentence per line keeps differences small; tables are made of cells."""
    prose = RESULTS.sub("", FENCE.sub("", page.read_text())).splitlines()
    crowded = [line for line in prose if not line.startswith("|") and re.search(r"[a-z`)][.?!] [A-Z]", line)]

    assert crowded == []


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    """Below 150 lines; a stranger can copy what does all the set-up."""
    lines = README.read_text().splitlines()

    assert len(lines) < 150
    assert 'pip install -e ".[lighter,experiments]" && lighter fit configs/quickstart.yaml' in lines
    assert 'pip install -e ".[test]" && pytest' in lines


def tree_of_the_readme() -> list[str]:
    """The paths in the README's annotated tree; folders end in "/"."""
    tree = next(block.code for block in blocks("text") if block.code.startswith("lighter_freezers/"))
    paths, folders = [], [""]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = "".join(folders[1 : depth + 1]) + name
        paths.append(path)
        folders = [*folders[: depth + 1], name] if name.endswith("/") else folders
    return paths


def test_the_tree_of_the_readme_is_the_package() -> None:
    """Every path in it exists, and every module has a line in it, or the folder that it is in."""
    paths = tree_of_the_readme()[1:]
    package = ROOT / "lighter_freezers"
    modules = [path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")]

    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [module for module in modules if not module.startswith(tuple(paths))] == []


def test_every_page_is_in_the_navigation() -> None:
    """A page without a link to it is not documentation."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if (ROOT / "docs") in path.parents]

    assert [page for page in pages if f": {page}\n" not in navigation] == []


def test_there_is_something_to_check() -> None:
    """The collectors above found what they are about."""
    callbacks = [t for b in YAML for t in targets(yaml.safe_load(b.code)) if "Freez" in t["_target_"]]

    assert len(PYTHON) >= 5
    assert len(BASH) >= 5
    assert len(callbacks) >= 15
    assert len(tree_of_the_readme()) > 20
