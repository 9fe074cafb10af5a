"""Prints docs/flags.md, the flags of a run as sesemi/flags.py has them:

    python scripts/flags_page.py > docs/flags.md
"""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from sesemi.flags import IDENTITY, KEPT, NOT_KEPT, TABLE, spell_flag  # noqa: E402
from sesemi.system.command_line import SWITCH_OPTIONS  # noqa: E402

HEAD = '''# Flags

The flags of `bash run_1p.sh`, which lists them with `--help` too. This page is made by
`python scripts/flags_page.py > docs/flags.md`.

`--flag value` and `--flag=value` are the same, and underscores do for hyphens. A flag without a value is a
switch; it may be given `True` or `False`.

The last column says what `--resume` does with the value that the run was started with:

- **fixed**: it stays, and another value is refused.
- **kept**: it stays unless the flag is given again.
- **not kept**: it is ignored, and the flag has its default unless it is given again. Only `--runs` is kept,
  in a folder that it has made.
'''
RESUMED = {IDENTITY: 'fixed', KEPT: 'kept', NOT_KEPT: 'not kept'}


def usage(flag):
    """A flag with the values that it takes, as `--network {convnet,nin,wrn}`."""
    options = flag.options
    if options is SWITCH_OPTIONS:
        return spell_flag(flag.name)
    value = options.get('metavar') or '{%s}' % ','.join(options['choices'])
    return '%s %s' % (spell_flag(flag.name), '[%s]' % value if 'nargs' in options else value)


def row(flag):
    """A flag's line of Markdown, in which | would end a cell and * begin emphasis."""
    text = re.sub(r'([|*])', r'\\\1', flag.help)
    return '| `%s` | %s | %s |' % (usage(flag).replace('|', r'\|'), text, RESUMED[flag.resumed])


def page():
    """The whole page as text."""
    lines = [HEAD]
    for title, flags in TABLE.items():
        lines += ['## ' + title.capitalize(), '', '| flag | what it does | `--resume` |', '|---|---|---|']
        lines += [row(flag) for flag in flags] + ['']
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.stdout.write(page())
