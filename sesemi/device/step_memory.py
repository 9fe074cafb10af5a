"""Whether the memory is enough for a training step on a CPU, which is known before the first one."""
from sesemi.errors import InputError
from sesemi.settings import PROGRAM_BYTES, PROXY_CLASSES, STEP_BYTES
from sesemi.system.machine import get_memory_size


def check_memory(network, method, batch_size, image_size, processes=1):
    """Raises InputError when a training step on this CPU would take more than all memory, which `processes`
    of the host share.

    A step takes what its layers give for the images of both branches, six views of each. A network that was
    not measured passes.
    """
    if network not in STEP_BYTES:
        return
    views = PROXY_CLASSES * (1 if method == 'supervised' else 2)
    room = get_memory_size() / processes - PROGRAM_BYTES
    image = STEP_BYTES[network] * views * image_size ** 2
    if batch_size * image > room:
        fitting = int(room / image)
        raise InputError('--batch-size %d: a step of %s takes about %.1f GB at %d pixels, and there are '
                         '%.1f; %s.' % (
            batch_size, network, (batch_size * image + PROGRAM_BYTES) / 1e9, image_size,
            get_memory_size() / processes / 1e9,
            'say --batch-size %d' % fitting if fitting else 'lower --image-size'))
