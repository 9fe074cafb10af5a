"""The benchmarks run and mark what became slower. What they measure is not tested."""
import json
import sys

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT / 'benchmarks'))
import run  # noqa: E402
import scaling  # noqa: E402


def start(monkeypatch, *flags):
    monkeypatch.setattr(sys, 'argv', ['run.py', *map(str, flags)])
    run.main()


@pytest.mark.filterwarnings('ignore::DeprecationWarning')       # the baseline's
@pytest.mark.parametrize('row', ['batch, one core', 'batch, two threads', '8 views of the test images'])
def test_a_row_is_measured_and_written(monkeypatch, tmp_path, capsys, row):
    start(monkeypatch, '--rows', row, '--images', '100', '--repeats', '1',
          '--json', tmp_path / 'seconds.json')
    (name, (theirs, ours)), = json.loads((tmp_path / 'seconds.json').read_text()).items()
    assert name == row and theirs > 0 and ours > 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize('stored, worse', [(0.5, False), (0.41, False), (0.39, True), (None, False)])
def test_a_ratio_a_quarter_worse_than_the_stored_one_is_marked(monkeypatch, tmp_path, capsys, stored, worse):
    version = run.runtime.tf.__version__.split('.')[0]
    ratios = {'another': {'row': 0.1}, version: {'row': stored} if stored else {}}
    (tmp_path / 'ratios.json').write_text(json.dumps(ratios))
    monkeypatch.setattr(run, 'RATIOS', str(tmp_path / 'ratios.json'))
    monkeypatch.setattr(run, 'ROWS',
                        {'row': lambda args: (2.0, 1.0), 'no baseline': lambda args: (None, 1.0)})
    start(monkeypatch)
    assert ('worse than stored' in capsys.readouterr().out) == worse
    assert json.loads((tmp_path / 'ratios.json').read_text()) == ratios
    start(monkeypatch, '--store')
    assert json.loads((tmp_path / 'ratios.json').read_text()) == {
        'another': {'row': 0.1}, version: {'row': 0.5}}


def test_modelled_seconds_of_a_step():
    assert scaling.compute_step(3, gradients=10 ** 9, ranks=1, bandwidth=8) == 3
    assert scaling.compute_step(3, gradients=10 ** 9, ranks=2, bandwidth=8, latency=0) == 4
    five = scaling.compute_step(3, gradients=10 ** 9, ranks=5, bandwidth=16, latency=.5)
    assert five == pytest.approx(3 + 0.8 + 4)
