"""The errors that end a program in one plain sentence, and what such sentences are made of."""
import re

# also what turns the direction of text
CONTROL_CHARACTERS = re.compile('[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069]')
MAX_DESCRIPTION = 300           # characters of a reason


def escape_controls(text):
    """Text from elsewhere for a line of a message or table: control characters, as file names may hold, as
    \\n, \\x1b, \\u202e.
    """
    return CONTROL_CHARACTERS.sub(lambda found: found.group().encode('unicode_escape').decode(), text)


class RunError(Exception):
    """Ends a program: the message is one plain sentence for the user, `status` the exit status."""
    status = 1

    def __str__(self):
        return escape_controls(super().__str__())


class InputError(RunError, ValueError):
    """A wrong flag, file or folder; the message names it and the remedy."""
    status = 2


def describe_error(error):
    """What an exception says, in one line: those of pickle and the downloads have several, MemoryError has
    none.
    """
    words = ' '.join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_DESCRIPTION else words[:MAX_DESCRIPTION] + '...'


def join_names(names, most=3):
    """The first names, and how many more there are."""
    names = list(names)
    more = ' and %d more' % (len(names) - most) if len(names) > most else ''
    return escape_controls(', '.join(names[:most])) + more
