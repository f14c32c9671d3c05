"""Whoever sits at a terminal, and is asked."""

import sys

from services.cli.failure import CommandFailure, UsageProblem


def somebody_is_there() -> bool:
    """Whether a question would be seen and could be answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> None:
    """Goes on where the answer is yes. Raises CommandFailure for any other, and UsageProblem where nobody can be asked."""
    if not somebody_is_there():
        raise UsageProblem(f"{question} Nobody can be asked here: say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandFailure("nothing was done")
