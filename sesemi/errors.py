"""The errors that end a program in one plain sentence, and what such sentences are made of."""


class RunError(Exception):
    """Ends a program: the message is one plain sentence for the user, `status` the exit status."""
    status = 1

    def __init__(self, sentence):
        super().__init__(printable(sentence))


class InputError(RunError, ValueError):
    """A wrong flag, file or folder; the message names it and the remedy."""
    status = 2


def reason(error):
    """What an exception says, in one line: those of pickle and the downloads have several, MemoryError has none."""
    return ' '.join(str(error).split()) or type(error).__name__


def printable(text):
    """The text with what would steer a terminal or break its line, as any byte may in a file's name, written as an escape."""
    return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def listed(names, most=3):
    """The first names, and how many more there are."""
    names = list(names)
    return printable(', '.join(names[:most])) + (' and %d more' % (len(names) - most) if len(names) > most else '')
