"""Compare finished runs in a table and, with --plot, in a plot.

    python report.py compare RESULT... [--plot FILE.png]
"""
import sys

if __name__ == '__main__':
    from sesemi.system import command_line, signals
    command_line.report_import_errors()
    signals.watch()     # before the slow imports, so that a signal during them is handled too

from sesemi.record import comparison
from sesemi.system.command_line import Parser, report_run_errors


@report_run_errors
def main(argv):
    """Run the program; returns its exit status."""
    parser = Parser(prog='report.py', description='Compare the results of several runs.')
    commands = parser.add_subparsers(metavar='compare', dest='command')
    commands.required = True
    command = commands.add_parser('compare', help='print a table of the results of several runs')
    command.add_argument('results', nargs='+', metavar='RESULT',
                         help='folder of a run, or a folder of such folders')
    command.add_argument('--plot', metavar='FILE.png', help='also plot the errors, one dot for each run')
    args = parser.parse_args(argv)
    print(comparison.compare(args.results))
    if args.plot:
        comparison.plot(args.results, args.plot)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
