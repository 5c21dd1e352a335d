"""`lighter-freezers init [NAME]`: lists the configs that come with the package, or copies one."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from lighter_freezers.reports.whole_files import write_whole
from lighter_freezers.selection.names import closest_names

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "List the configs that come with the package, or copy one into configs/ of this folder."
PACKAGE = Path(__file__).parents[1]
HOMES = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in an installed package, in a checkout
HOW_TO_RUN = re.compile(r"^# Run it: +(.*)$", re.M)
REFERENCE = re.compile(r"\bconfigs/([\w/.-]+\.\w+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `init`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the config to copy; left out: list all")


def run(arguments: argparse.Namespace) -> int:
    """List the configs, or copy one with the files it refers to."""
    home = next(folder for folder in HOMES if folder.is_dir())
    names = {path.relative_to(home).with_suffix("").as_posix(): path for path in sorted(home.rglob("*.yaml"))}
    if arguments.name is None:
        width = max(map(len, names))
        for name, path in names.items():
            print(f"{name:{width}}  {_first_line(path)}")
        print("\nCopy one: lighter-freezers init quickstart")
        return 0
    name = arguments.name.removesuffix(".yaml").removeprefix("configs/")
    if name not in names:
        raise ValueError(f"There is no config '{name}'. Closest: {', '.join(closest_names(name, names, 3))}.")
    _copy(home, names[name])
    for line in HOW_TO_RUN.findall(names[name].read_text(encoding="utf-8")):
        print(f"Run it: {line}")
    return 0


def _first_line(config: Path) -> str:
    return config.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def _copy(home: Path, config: Path) -> None:
    """Copy under the paths that the config itself uses, and never over a file that differs."""
    copies = {Path("configs") / file.relative_to(home): file.read_bytes() for file in _needed(home, config)}
    edited = [path for path, content in copies.items() if path.exists() and path.read_bytes() != content]
    if edited:
        raise FileExistsError(f"{edited[0]} exists and differs. Move it away, or run this in another folder.")
    for path, content in copies.items():
        write_whole(path, content)
        print(path)


def _needed(home: Path, config: Path) -> Iterator[Path]:
    """The config, and what it and those files refer to."""
    found, todo = {config}, [config]
    while todo:
        file = todo.pop()
        yield file
        names = REFERENCE.findall(file.read_text(encoding="utf-8")) if file.suffix == ".yaml" else []
        new = {home / name for name in names if (home / name).is_file()} - found
        found |= new
        todo.extend(sorted(new))
