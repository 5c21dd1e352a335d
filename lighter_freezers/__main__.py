"""`python -m lighter_freezers COMMAND ...`: the command line, where no console script is on the path."""

import sys

from lighter_freezers.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
