import re

import pytest
from conftest import PROJECT

import export_pb
import predict
import train_evaluate_sesemi
from sesemi.device import precision

README, CHINESE = ((PROJECT / name).read_text(encoding='utf-8') for name in ('README.md', 'README.zh-CN.md'))


def commands(text):
    """Every command line of a text: the lines of its code blocks and what, in backquotes, begins as one."""
    fence = re.compile('^```.*?^```$', re.MULTILINE | re.DOTALL)
    lines = [line for block in fence.findall(text) for line in block.splitlines()[1:-1]]
    return set(lines + re.findall(r'`((?:bash|python|atc|\./msame) [^`\n]+)`', fence.sub('', text)))


def test_the_table_of_flags_is_the_command_line(capsys):
    table = set(re.findall(r'^\| `(--[a-z0-9-]+)', README, re.MULTILINE))
    with pytest.raises(SystemExit):
        train_evaluate_sesemi.parse_args(['--help'])
    assert table == set(re.findall(r'^  (--[a-z0-9-]+)', capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize('program, parse_args, least', [
    ('bash run_1p.sh', train_evaluate_sesemi.parse_args, 5), ('python predict.py', predict.parse_args, 2),
    ('python export_pb.py', export_pb.parse_args, 2)])
def test_every_command_of_a_program_is_one_it_takes(program, parse_args, least, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # which may lack what the command asks for
    monkeypatch.setattr(precision, 'known_device', lambda requested: None)
    found = [command[len(program):].split() for command in commands(README)
             if command.startswith(program + ' ')]
    assert len(found) >= least
    for words in found:
        if words != ['--help']:
            parse_args(words)


def test_every_file_that_is_named_is_there():
    for name in re.findall(r'`([\w/]+\.(?:py|sh|txt))`', README + CHINESE):
        assert (PROJECT / name).exists(), name


def test_what_one_starts_and_every_room_is_in_the_layout():
    for text in README, CHINESE:
        rooms = [path.parent for path in PROJECT.glob('sesemi/*/__init__.py')]
        for path in [*PROJECT.glob('*.py'), *PROJECT.glob('*.sh'), *PROJECT.glob('sesemi/[!_]*.py'), *rooms]:
            name = str(path.relative_to(PROJECT)) + '/' * path.is_dir()
            assert re.search(r'^\|.*`%s`.*\|' % re.escape(name), text, re.MULTILINE), path


def test_the_chinese_readme_has_the_same_commands_and_flags():
    assert commands(CHINESE) == commands(README)
    english, chinese = (set(re.findall(r'--[a-z][\w-]*', text)) for text in (README, CHINESE))
    assert chinese == english


def test_the_chinese_readme_has_the_same_figures():
    """The rows that end in a command hold the same numbers, in the same order."""
    def rows(text):
        table = [line for line in text.splitlines() if line.startswith('|') and 'bash run_1p.sh' in line]
        return sorted(re.findall(r'\d+(?:[.,]\d+)*', line) for line in table)
    assert len(rows(README)) >= 5
    assert rows(CHINESE) == rows(README)
