"""`lighter-freezers spectrum`: which matrices of a model carry signal, as a Freezer that holds the others."""

import argparse

from torch import nn

__all__ = ["SUMMARY", "add_arguments", "freezer_text", "run"]

SUMMARY = (
    "Scan the weights of a config's model for their signal-to-noise ratio (Spectrum, arXiv 2406.06623), and "
    "print a Freezer that holds all matrices but the best of each kind, with the scores as comments."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of this command."""
    parser.add_argument(
        "inputs", nargs="+", metavar="config.yaml", help="config files and overrides, as for lighter"
    )
    parser.add_argument(
        "--top", default="50%", metavar="SHARE", help="share of each kind that trains, such as 25%% (50%%)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Build the model, scan, print."""
    from lighter_freezers.planning.from_config import built_from_config

    try:
        percent = float(arguments.top.removesuffix("%"))
    except ValueError:
        raise ValueError(f"--top is a share such as 25%. Got {arguments.top!r}.") from None
    model, *_ = built_from_config(arguments.inputs)
    print(freezer_text(model, percent))
    return 0


def freezer_text(model: nn.Module, percent: float) -> str:
    """The YAML of a Freezer for the matrices that do not train, kind by kind."""
    from lighter_freezers.policies.spectrum import Spectrum, best_of_each_kind, ranked_kinds

    policy = Spectrum(top_percent=percent)
    scores = policy.prepare(model)
    chosen = best_of_each_kind(scores, policy.top_percent)
    lines = [
        f"# Spectrum (arXiv 2406.06623): {percent:g} % of the matrices of each kind with the highest",
        f"# signal-to-noise ratio train, {len(chosen)} of {len(scores)}. Behind each name is its score.",
        "- _target_: lighter_freezers.Freezer",
        "  name_starts_with:",
    ]
    for kind, ranked in ranked_kinds(scores).items():
        lines.append(f"    # {kind}")
        for path in ranked:
            entry = f"- {path}." if path not in chosen else f"# trains: {path}"
            lines.append(f"    {entry} {'' if path in chosen else '# '}{scores[path]:.3g}")
    return "\n".join(lines)
