"""The command line `lighter-freezers COMMAND ...`: the list of commands, and how one is run.

A command is a module of `lighter_freezers.cli` with `SUMMARY`, `add_arguments(parser)` and
`run(arguments) -> exit status`; only the module of the requested command is imported.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import lighter_freezers

__all__ = ["main"]

# module of this room -> the line in `lighter-freezers --help`
_COMMANDS = {
    "compare": "settings, figures and curves of runs, side by side",
    "init": "the configs that come with the package: list them, copy one",
    "layers": "the layers of a model, and what rules call them",
    "plan": "what a config will freeze, when, and what it costs",
    "plots": "pictures of gradient norms and losses of runs",
    "report": "the plan beside what a finished run measured",
    "schedule": "write a config with a freezing schedule for a model",
    "spectrum": "a Freezer for all matrices but those with most signal",
}
_USER_ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError)
_LIGHTNING_ERROR = "MisconfigurationException"  # by name: its import takes seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of `lighter-freezers` and `python -m lighter_freezers`.

    Args:
        argv: The arguments after the program's name. None reads them from the command line.

    Returns:
        The exit status: 0, or 2 after a mistake in the arguments, the files or the config.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed the help, the version or the error
        return int(stop.code or 0)
    try:
        status = int(parsed.run(parsed))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `plan ... | head` has read enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not (isinstance(error, _USER_ERRORS) or type(error).__name__ == _LIGHTNING_ERROR):
            raise
        print(f"lighter-freezers {parsed.command}: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser: all command names, and the arguments of the requested one (imports its module)."""
    parser = argparse.ArgumentParser(
        prog="lighter-freezers",
        usage=f"%(prog)s [-h] [--version] COMMAND ...\n       COMMAND is one of {', '.join(_COMMANDS)}",
        description="Freeze and thaw layers on a schedule: see it before, and after.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {lighter_freezers.__version__}")
    commands = parser.add_subparsers(prog=parser.prog, dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in arguments if word in _COMMANDS), None)
    for name, line in _COMMANDS.items():
        module = import_module(f"lighter_freezers.cli.{name}") if name == asked else None
        command = commands.add_parser(name, help=line, description=getattr(module, "SUMMARY", None))
        if module is not None:
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
