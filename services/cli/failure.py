"""What a command ends with: one clear line and an exit status that a script can branch on."""

FAILED = 1  # the thing asked for did not work
USAGE = 2  # what was given is wrong and stays wrong
UNREACHABLE = 3  # Bulkhead does not answer
DENIED = 4  # the key is missing, wrong, or may not do this
LATER = 5  # a limit is used up or a part is away: the same may work later
CONFLICT = 6  # it is in another state, or somebody was first
INTERRUPTED = 130  # Ctrl-C


class CommandFailure(Exception):
    """Ends the command: the message goes to stderr as it is, without a traceback."""

    status = FAILED


class UsageProblem(CommandFailure):
    """The command line, or what it leads to, is wrong."""

    status = USAGE


class Unreachable(CommandFailure):
    """Bulkhead does not answer."""

    status = UNREACHABLE


class Dropped(Unreachable):
    """The connection broke before the answer came: nobody knows what became of the request."""


class Denied(CommandFailure):
    """The key is missing, wrong, or may not do this."""

    status = DENIED


class Later(CommandFailure):
    """Not now: the same may work later."""

    status = LATER


class Conflict(CommandFailure):
    """It is in another state, or somebody was first."""

    status = CONFLICT


class InFlight(Conflict):
    """The same request is at work: it was sent before, and its answer was lost."""


class NotThere(CommandFailure):
    """It is not there, or not the caller's."""


class Interrupted(CommandFailure):
    """A stream ended before its last event."""

    status = LATER
