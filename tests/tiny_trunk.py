"""Adds the network `tiny`, a trunk of one convolution. The checkpoints in tests/fixture are of it.

As a program: train_evaluate_sesemi.py with this trunk in place of nin. It takes the same flags and leaves the
same files, except the pictures, which would take as long as everything else.
"""
import os
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    from sesemi.system import output, signals
    output.tolerate_write_errors()
    signals.watch()     # before the imports that start threads

from one_convolution import trunk  # noqa: E402

from networks import sesemi  # noqa: E402

sesemi.TRUNKS['tiny'] = trunk


def main(argv):
    """Run the program; returns its exit status."""
    import train_evaluate_sesemi
    from sesemi.record import plots
    without_plots = mock.patch.object(plots, 'import_error', lambda: 'tests need no pictures')
    with mock.patch.dict(sesemi.TRUNKS, nin=trunk), without_plots:
        return train_evaluate_sesemi.main(argv)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
