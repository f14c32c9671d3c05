"""The `bulkhead` command."""

import sys


def main() -> None:
    """Runs the command line; every expected failure is one clear line on stderr and an exit status."""
    from services.cli.commands import app
    from services.cli.failure import INTERRUPTED, CommandFailure

    try:
        app()
    except CommandFailure as failure:
        print(f"bulkhead: {failure}", file=sys.stderr)
        raise SystemExit(failure.status) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted.
        sys.stderr.close()
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
