"""The READMEs and the pages in docs/: their size, and that what they name is there and what they say to type
is taken.
"""
import re
import shlex
import sys

import pytest
from conftest import PROJECT

import boot_modelarts
import export
import predict
import train_evaluate_sesemi
from sesemi.device import precision

sys.path.insert(0, str(PROJECT / 'scripts'))

import flags_page

READMES = 'README.md', 'README.zh-CN.md'
PAGES = {str(path.relative_to(PROJECT)): path.read_text(encoding='utf-8')
         for pattern in ('README*.md', 'docs/**/*.md') for path in sorted(PROJECT.glob(pattern))}
FENCE = re.compile('^```.*?^```$', re.MULTILINE | re.DOTALL)
PARSERS = {
    'run_1p.sh': train_evaluate_sesemi.parse_args,
    'run_8p.sh': train_evaluate_sesemi.parse_args,
    'run_local.sh': lambda words: train_evaluate_sesemi.parse_args(words[1:]),
    'boot_modelarts.py': lambda words: train_evaluate_sesemi.parse_args(boot_modelarts.parse_args(words)[1]),
    'predict.py': predict.parse_args,
    'export.py': export.parse_args,
}


def commands(text):
    """Every command line of a text: the lines of its code blocks and what, in backquotes, begins as one."""
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]
    return set(lines + re.findall(r'`((?:[A-Z_]+=\S+ )*(?:bash|python|atc|\./msame) [^`\n]+)`',
                                  FENCE.sub('', text)))


def links(name):
    """The files and headings that a page links to, as (path from the project's folder, heading or '')."""
    for target in re.findall(r'\]\(([^)\s]+)\)', PAGES[name]):
        if not re.match('[a-z]+:', target):
            path, _, heading = target.partition('#')
            target = ((PROJECT / name).parent / path if path else PROJECT / name).resolve()
            yield str(target.relative_to(PROJECT)), heading


def headings(text):
    """The headings of a page, spelled as a link has them."""
    found = re.findall('^#+ (.*)$', FENCE.sub('', text), re.MULTILINE)
    return [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in found]


def test_a_readme_is_one_page_and_so_is_every_page_of_docs():
    for name, text in PAGES.items():
        assert text.count('\n') <= 150, name
    for name in READMES:
        assert max(map(len, PAGES[name].splitlines())) <= 120, name
        assert len(PAGES[name].encode('utf-8')) <= 10240, name


def test_the_page_of_flags_is_current():
    assert PAGES['docs/flags.md'] == flags_page.page(), 'python scripts/flags_page.py > docs/flags.md'


def test_every_command_of_a_program_is_one_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # neither this machine's device, which may lack what a command asks for, nor a run or model to begin from
    monkeypatch.setattr(precision, 'known_device', lambda requested: None)
    monkeypatch.setattr(train_evaluate_sesemi, 'flags_to_resume', lambda folder: {})
    monkeypatch.setattr(train_evaluate_sesemi, 'take_settings', lambda *args: None)
    taken = set()
    for command in sorted(set().union(*map(commands, PAGES.values()))):
        found = re.match(r'(?:[A-Z_]+=\S+ )*(?:bash|\S*python) (\S+)', command)
        if found and found.group(1) in PARSERS and '--help' not in command:
            PARSERS[found.group(1)](shlex.split(command[found.end():], comments=True))
            taken.add(found.group(1))
    assert taken >= {'run_1p.sh', 'predict.py'}


def test_every_file_that_is_named_is_there():
    named = re.compile(r'`([\w/-]+\.(?:py|sh|txt|md)|'
                       r'(?:benchmarks|docs|networks|scripts|sesemi|tests?)/[\w./-]*)`')
    for page, text in PAGES.items():
        for name in named.findall(text):
            assert (PROJECT / name).exists(), '%s: %s' % (page, name)


def test_every_link_leads_somewhere_and_some_link_to_every_page():
    linked = set(READMES)
    for page in PAGES:
        for name, heading in links(page):
            assert (PROJECT / name).exists(), '%s: %s' % (page, name)
            assert not heading or heading in headings(PAGES[name]), '%s: %s#%s' % (page, name, heading)
            linked.add(name)
    assert set(PAGES) <= linked


def test_what_one_starts_and_every_room_is_in_the_layout():
    rooms = [path.parent for path in PROJECT.glob('sesemi/*/__init__.py')]
    for path in [*PROJECT.glob('*.py'), *PROJECT.glob('*.sh'), *PROJECT.glob('sesemi/[!_]*.py'), *rooms,
                 PROJECT / 'test']:
        name = str(path.relative_to(PROJECT)) + '/' * path.is_dir()
        assert re.search(r'^\|.*`%s`.*\|' % re.escape(name), PAGES['docs/design.md'], re.MULTILINE), path


@pytest.mark.parametrize('page, translation', [READMES, ('docs/ascend.md', 'docs/zh-CN/ascend.md')])
def test_a_translation_has_the_same_commands_and_flags(page, translation):
    assert commands(PAGES[translation]) == commands(PAGES[page])
    english, chinese = (set(re.findall(r'--[a-z][\w-]*', PAGES[name])) for name in (page, translation))
    assert chinese == english


def test_the_chinese_readme_has_the_same_figures():
    """The rows that end in a command hold the same numbers, in the same order."""
    def rows(name):
        table = [line for line in PAGES[name].splitlines()
                 if line.startswith('|') and 'bash run_1p.sh' in line]
        return sorted(re.findall(r'\d+(?:[.,]\d+)*', line) for line in table)
    assert len(rows('README.md')) >= 5
    assert rows('README.zh-CN.md') == rows('README.md')
