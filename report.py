"""Several finished runs side by side:

    python report.py compare RESULT... [--plot FILE.png]
"""
import sys

if __name__ == '__main__':
    from sesemi.system import signals
    signals.watch()     # before the imports that take a second

from sesemi.record import comparison
from sesemi.system.command_line import Parser, report_run_errors


@report_run_errors
def main(argv):
    """Run the program; returns its exit status."""
    parser = Parser(prog='report.py', description='Results of several runs side by side.')
    commands = parser.add_subparsers(metavar='compare', dest='command')
    commands.required = True
    command = commands.add_parser('compare', help='results of several runs side by side')
    command.add_argument('results', nargs='+', metavar='RESULT',
                         help='folder of a run, or a folder of such folders')
    command.add_argument('--plot', metavar='FILE.png', help='also draw the errors, a dot a run')
    args = parser.parse_args(argv)
    print(comparison.compare(args.results))
    if args.plot:
        comparison.plot(args.results, args.plot)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
