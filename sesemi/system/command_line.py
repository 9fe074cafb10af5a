"""What the command lines of the programs share: a parser that refuses in one sentence, types of flags, and
how a program ends.
"""
import argparse
import functools
import sys

from sesemi.errors import InputError, RunError


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated flags and raises InputError instead of printing its usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        raise InputError('%s; --help lists the flags.' % message)


def report_run_errors(main):
    """Decorates a main(argv): its exit status is what it returns, else 0; that of a RunError, which it
    prints.
    """
    @functools.wraps(main)
    def status(argv):
        try:
            return main(argv) or 0
        except RunError as error:
            print(error, file=sys.stderr)
            return error.status
    return status


def whole_number(least, most=None):
    """The type of a flag that is a whole number from `least` up, to `most` if that is given."""
    def parse(text):
        if not text.isdecimal() or int(text) < least or most and int(text) > most:
            raise argparse.ArgumentTypeError('%s is not a whole number from %d %s' % (
                text, least, 'to %d' % most if most else 'up'))
        return int(text)
    return parse


def positive_number(text):
    """The type of a flag that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError('%s is not a number above 0' % text)
    return value


def fraction(most):
    """The type of a flag that is a number above 0 and up to `most`."""
    def parse(text):
        if positive_number(text) > most:
            raise argparse.ArgumentTypeError('%s is not above 0 and up to %g' % (text, most))
        return float(text)
    return parse


def true_or_false(text):
    """The type of a flag that is on, off, or on when it has no value, as SWITCH has it."""
    if text.lower() not in ('true', 'false'):
        raise argparse.ArgumentTypeError('%s is neither True nor False' % text)
    return text.lower() == 'true'


# job parameters always have a value
SWITCH_OPTIONS = {'nargs': '?', 'const': True, 'type': true_or_false, 'metavar': 'True|False'}
