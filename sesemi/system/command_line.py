"""What all programs use for their command line: the parser, types of flags, and the exit status."""
import argparse
import functools
import os
import sys

from sesemi.errors import CANNOT_IMPORT, InputError, RunError, describe_error


class Parser(argparse.ArgumentParser):
    """Accepts no abbreviated flags, and raises InputError instead of printing the usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        raise InputError('%s; --help lists the flags.' % message)


def keep_docstrings():
    """Restart a program that runs with PYTHONOPTIMIZE=2 or -OO: TensorFlow's import needs docstrings."""
    if sys.flags.optimize > 1:
        os.environ.pop('PYTHONOPTIMIZE', None)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def report_import_errors():
    """From now on an uncaught ImportError, as of a missing package, is one sentence and exit status 2."""
    sys.excepthook = _report_import_error


def _report_import_error(kind, error, traceback):
    if not issubclass(kind, ImportError):
        return sys.__excepthook__(kind, error, traceback)
    print(CANNOT_IMPORT % (sys.executable, describe_error(error)), file=sys.stderr)
    sys.exit(InputError.status)


def report_run_errors(main):
    """Decorate main(argv) to return an exit status, and to print a RunError and return its status."""
    @functools.wraps(main)
    def status(argv):
        try:
            return main(argv) or 0
        except RunError as error:
            print(error, file=sys.stderr)
            return error.status
    return status


def whole_number(least, most=None):
    """The argparse type of a whole number of at least `least` and, if given, at most `most`."""
    def parse(text):
        if not text.isdecimal() or int(text) < least or most and int(text) > most:
            raise argparse.ArgumentTypeError('%s is not a whole number from %d %s' % (
                text, least, 'to %d' % most if most else 'up'))
        return int(text)
    return parse


def positive_number(text):
    """The argparse type of a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError('%s is not a number above 0' % text)
    return value


def fraction(most):
    """The argparse type of a number above 0 and at most `most`."""
    def parse(text):
        if positive_number(text) > most:
            raise argparse.ArgumentTypeError('%s is not above 0 and up to %g' % (text, most))
        return float(text)
    return parse


def true_or_false(text):
    """The argparse type of a flag that is True or False."""
    if text.lower() not in ('true', 'false'):
        raise argparse.ArgumentTypeError('%s is neither True nor False' % text)
    return text.lower() == 'true'


# --flag alone means True; a value is allowed because job parameters always have one
SWITCH_OPTIONS = {'nargs': '?', 'const': True, 'type': true_or_false, 'metavar': 'True|False'}
