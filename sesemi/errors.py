"""The errors that end a program in one plain sentence, and what another exception says in one line."""


class RunError(Exception):
    """Ends a program: the message is one plain sentence for the user, `status` the exit status."""
    status = 1


class InputError(RunError, ValueError):
    """A wrong flag, file or folder; the message names it and the remedy."""
    status = 2


def reason(error):
    """What an exception says, in one line: those of pickle and the downloads have several, MemoryError has none."""
    return ' '.join(str(error).split()) or type(error).__name__
