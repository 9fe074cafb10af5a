"""Makes the trunk of one convolution the network `tiny`. The checkpoints in tests/fixture are of it.

Started as a program it is train_evaluate_sesemi.py with that trunk in place of nin: same flags, same files
but for the pictures, which take as long as all else.
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
    without_plots = mock.patch.object(plots, 'import_error', lambda: 'a test needs none')
    with mock.patch.dict(sesemi.TRUNKS, nin=trunk), without_plots:
        return train_evaluate_sesemi.main(argv)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
