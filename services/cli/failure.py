"""What a command ends with: one clear line and an exit status that a script can branch on."""

FAILED = 1  # the thing asked for did not work
USAGE = 2  # the command line is wrong
UNREACHABLE = 3  # Bulkhead does not answer
DENIED = 4  # the key is missing, wrong, or may not do this
INTERRUPTED = 130  # Ctrl-C


class CommandFailure(Exception):
    """Ends the command: the message goes to stderr as it is, without a traceback."""

    status = FAILED


class UsageProblem(CommandFailure):
    """The command line is wrong."""

    status = USAGE


class Unreachable(CommandFailure):
    """Bulkhead does not answer."""

    status = UNREACHABLE


class Denied(CommandFailure):
    """The key is missing, wrong, or may not do this."""

    status = DENIED
