"""The `bulkhead` command."""

import io
import os
import sys
from collections.abc import Sequence

TRACEBACK = "BULKHEAD_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; every expected failure is one clear line on stderr and an exit status."""
    from typer.exceptions import Abort, TyperException

    from services.cli.commands import app
    from services.cli.failure import FAILED, INTERRUPTED, CommandFailure
    from services.cli.terminal import printable

    def tell(text: str) -> None:
        # It may have words of a file, of an agent or of whoever answers at the URL.
        print(f"bulkhead: {printable(text)}", file=sys.stderr)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What no encoding has, as half of a surrogate pair, is escaped as JSON would escape it.
            stream.reconfigure(errors="backslashreplace")
    try:
        # What a command returns is no status; what ends it early, as Ctrl-C does, comes back as one.
        ended = app(arguments, prog_name="bulkhead", standalone_mode=False)
        if isinstance(ended, int) and ended:
            raise SystemExit(ended)
    except CommandFailure as failure:
        tell(str(failure))
        raise SystemExit(failure.status) from None
    except TyperException as wrong:
        # A group that is called without a command has shown its help instead.
        if text := " ".join(wrong.format_message().split()):
            tell(f"{text} (see --help)")
        raise SystemExit(wrong.exit_code) from None
    except (Abort, KeyboardInterrupt):
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        # Whoever answers at the URL may be no Bulkhead, or one of another version.
        tell(f"unforeseen {type(error).__name__}: {' '.join(str(error).split())} ({TRACEBACK}=1 shows where)")
        raise SystemExit(FAILED) from None


if __name__ == "__main__":
    main()
