"""`lighter-freezers report`: the plan of a finished run beside what the run measured."""

import argparse
import json
import sys

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Set the plan of a run beside what its PhaseRecorder measured: FLOPs, memory and relative time of a step "
    "in each phase; a run without one shows its plan. That is made again from the config.yaml that "
    "`lighter fit` leaves in the folder, or read from --plan."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument(
        "--plan", metavar="FILE", help="a plan saved by `lighter-freezers plan ... --json > FILE`"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument("--no-times", action="store_true", help="compare counts and bytes only")


def run(arguments: argparse.Namespace) -> int:
    """Read the report, make a plan if none is given, compare and print."""
    from pathlib import Path

    from lighter_freezers.planning.comparison import compare, read_report
    from lighter_freezers.planning.from_config import plan_of_config
    from lighter_freezers.planning.phase_meter import FILE
    from lighter_freezers.planning.values import Plan, rates_and_totals
    from lighter_freezers.reports.whole_files import naming

    folder = Path(arguments.run_dir)
    config = folder / "config.yaml"
    has_plan = arguments.plan is not None or config.is_file()
    records = read_report(folder) if (folder / FILE).is_file() or not has_plan else None
    if arguments.plan is not None:
        saved = Path(arguments.plan)
        with naming(saved, "a plan of `plan ... --json`"):
            planned = Plan.from_dict(json.loads(saved.read_text()))
    elif config.is_file():
        planned = plan_of_config([str(config)], has_times=not arguments.no_times)
    else:
        raise ValueError(
            f"There is no config.yaml in '{folder}', as `lighter fit` leaves one. Give --plan FILE."
        )
    if records is None:
        print("Nothing was measured, as the run had no PhaseRecorder. Its plan:\n", file=sys.stderr)
        print(json.dumps(planned.as_dict(), indent=1) if arguments.json else planned)
        return 0
    compared = compare(planned, records)
    print(
        json.dumps(compared.as_dict(), indent=1)
        if arguments.json
        else f"{compared}\n\n{rates_and_totals(planned)}"
    )
    return 0
