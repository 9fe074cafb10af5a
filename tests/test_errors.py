"""Text from elsewhere in messages and tables stays in its line and gives the terminal no instructions."""
import pytest

from sesemi.errors import InputError, describe_error, escape_controls
from sesemi.system import files

NAMES = [('a\nb.png', r'a\nb.png'), ('\x1b[2Jgone', r'\x1b[2Jgone'),
         ('\r\t\x00\x7f\x9b', r'\r\t\x00\x7f\x9b'), ('gnp\u202eexe', r'gnp\u202eexe'), ('\u2028', r'\u2028'),
         ('caf\udce9', r'caf\udce9'),
         ('caf\u00e9 \u732b.png', 'caf\u00e9 \u732b.png')]


@pytest.mark.parametrize('name, shown', NAMES)
def test_control_characters_are_escaped(name, shown):
    assert escape_controls(name) == shown
    assert str(InputError(name + ': no such file.')) == shown + ': no such file.'


@pytest.mark.parametrize('name, shown', [*NAMES, ('caf\udce9.png', r'caf\udce9.png')])
def test_a_row_of_csv_stays_in_one_line(tmp_path, name, shown):
    files.write_table(str(tmp_path / 'a.csv'), [{'file': name, 'class': name, 'n': 1}])
    assert (tmp_path / 'a.csv').read_bytes().decode() == 'file,class,n\n{0},{0},1\n'.format(shown)


def test_a_reason_is_one_line_of_limited_length():
    assert describe_error(ValueError('a\n  b')) == 'a b' and describe_error(MemoryError()) == 'MemoryError'
    assert len(describe_error(ValueError(10 ** 6 * 'x'))) < 400
