"""`lighter-freezers plan`: what a config will freeze, when, and what it costs, before the first step."""

import argparse
import json

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Rehearse a run of `lighter fit` on a copy of its model: which names each rule matches, when what "
    "changes, and what a step of each phase costs. Nothing is trained, logged or saved."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `plan`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="config.yaml",
        help="config files, and overrides such as trainer::max_epochs=3",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--picture", metavar="FILE", help="draw layers by steps: .png or .svg")
    parser.add_argument(
        "--no-times", action="store_true", help="one step in each phase: counts and bytes only"
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the plan, print it, and draw it if asked to."""
    from lighter_freezers.planning.from_config import plan_of_config
    from lighter_freezers.reports.timeline_svg import check_picture_path

    if arguments.picture is not None:
        check_picture_path(arguments.picture)
    planned = plan_of_config(arguments.inputs, has_times=not arguments.no_times)
    print(json.dumps(planned.as_dict(), indent=1) if arguments.json else planned)
    if arguments.picture is not None:
        planned.draw(arguments.picture)
    return 0
