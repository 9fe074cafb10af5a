import re

from conftest import PROJECT
import flags

README = (PROJECT / 'README.md').read_text(encoding='utf-8')


def test_the_table_of_flags_is_the_command_line():
    table = set(re.findall(r'^\| `(--[a-z0-9-]+)', README, re.MULTILINE))
    options = {option for action in flags._parser()._actions for option in action.option_strings}
    assert table == options - {'-h', '--help'}


def test_every_command_of_the_script_is_one_it_takes():
    commands = re.findall(r'bash run_1p\.sh (--(?!help)[^`\n]*)', README)
    assert len(commands) >= 5
    for command in commands:
        flags.parse_args(command.split())


def test_every_file_that_is_named_is_there():
    for name in re.findall(r'`([\w/]+\.(?:py|sh|txt))`', README):
        assert (PROJECT / name).exists(), name
