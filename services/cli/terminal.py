"""What may go to a terminal, and whoever sits at it and is asked."""

import sys
import unicodedata

from services.cli.failure import CommandFailure, UsageProblem

# They make a terminal show a text in another order than it has.
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    """`text` without what a terminal would obey or hide: control characters but line ends and tabs, and marks that turn its direction."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in DIRECTIONS))


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


def confirm_by_name(question: str, name: str, said: str) -> None:
    """Goes on where `name` is said: in `said`, the option --confirm, or else on the terminal. Raises UsageProblem for another name in the
    option and where nobody can be asked, CommandFailure for another on the terminal."""
    if said:
        if said != name:
            raise UsageProblem(f"--confirm {said} names another than {name}: nothing was done")
        return
    if not somebody_is_there():
        raise UsageProblem(f"{question} Nobody can be asked here: say --confirm {name}")
    print(f"{printable(question)} Type {printable(name)} to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != name:
        raise CommandFailure("nothing was done")
