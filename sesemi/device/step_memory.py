"""Checks before training whether a CPU has the memory for a step."""
from sesemi.errors import InputError
from sesemi.settings import PROGRAM_BYTES, PROXY_CLASSES, STEP_BYTES
from sesemi.system.machine import get_memory_size


def check_memory(network, method, batch_size, image_size, processes=1):
    """Raises InputError if a training step on this CPU would take more than all memory.

    Most of it is taken by the layers' outputs for six views of the images of both branches. image_size:
    pixels; processes: how many share the host's memory. Networks without a figure in STEP_BYTES pass.
    """
    if network not in STEP_BYTES:
        return
    views = PROXY_CLASSES * (1 if method == 'supervised' else 2)
    free = get_memory_size() / processes - PROGRAM_BYTES
    image = STEP_BYTES[network] * views * image_size ** 2
    if batch_size * image > free:
        largest = int(free / image)
        raise InputError('--batch-size %d: a step of %s takes about %.1f GB at %d pixels, and there are '
                         '%.1f; %s.' % (
            batch_size, network, (batch_size * image + PROGRAM_BYTES) / 1e9, image_size,
            get_memory_size() / processes / 1e9,
            'say --batch-size %d' % largest if largest else 'lower --image-size'))
