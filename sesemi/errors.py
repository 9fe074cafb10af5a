"""Errors that end a program with one plain sentence, and helpers to word such sentences."""
import re

# control characters, those that change the direction of text, and bytes of a name that are not UTF-8
CONTROL_CHARACTERS = re.compile('[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]')
# (interpreter, reason)
CANNOT_IMPORT = ('%s cannot import what this program needs (%s); use an interpreter that has the packages of '
                 'requirements.txt, or run_1p.sh without PYTHON, which finds or installs one.')
MAX_DESCRIPTION = 300   # characters of an error's description


def escape_controls(text):
    """Write control characters as \\n, \\x1b or \\u202e: text from elsewhere stays one line of UTF-8."""
    return CONTROL_CHARACTERS.sub(lambda found: found.group().encode('unicode_escape').decode(), text)


class RunError(Exception):
    """Ends a program: the message is one plain sentence for the user, `status` the exit status.

    Arguments after the message are for the caller that catches it.
    """
    status = 1

    def __str__(self):
        return escape_controls(str(self.args[0]))


class InputError(RunError, ValueError):
    """A wrong flag, file or folder; the message names it and the remedy."""
    status = 2


def describe_error(error):
    """An exception's message as one line of limited length; the name of its type if it has no message."""
    words = ' '.join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_DESCRIPTION else words[:MAX_DESCRIPTION] + '...'


def join_names(names, most=3):
    """The first `most` names, separated by commas, and how many more there are."""
    names = list(names)
    more = ' and %d more' % (len(names) - most) if len(names) > most else ''
    return escape_controls(', '.join(names[:most])) + more
