import pytest

from sesemi.device import step_memory
from sesemi.device.step_memory import check_memory
from sesemi.errors import InputError
from sesemi.settings import PROGRAM_BYTES, STEP_BYTES


@pytest.mark.parametrize('network', ['convnet', 'nin', 'wrn'])
@pytest.mark.parametrize('method, branches', [('asl', 2), ('ssl', 2), ('supervised', 1)])
def test_a_step_too_large_is_refused_with_a_batch_size_that_fits(monkeypatch, network, method, branches):
    image = STEP_BYTES[network] * 6 * branches * 128 ** 2
    monkeypatch.setattr(step_memory, 'get_memory_size', lambda: 2 * (PROGRAM_BYTES + 2.5 * image))
    check_memory(network, method, 2, 128, processes=2)
    check_memory(network, method, 8, 64, processes=2)
    said = '--batch-size 16: a step of {} takes about [0-9.]+ GB at 128 pixels, .*; say --batch-size 2'
    with pytest.raises(InputError, match=said.format(network)):
        check_memory(network, method, 16, 128, processes=2)
    monkeypatch.setattr(step_memory, 'get_memory_size', lambda: PROGRAM_BYTES + .9 * image)
    with pytest.raises(InputError, match='lower --image-size'):
        check_memory(network, method, 16, 128)
    check_memory('of my own', method, 16, 128)
