"""Measures the speed of several workers on this machine, with one core each, and computes that of more:

    python benchmarks/scaling.py [--network convnet] [--workers N ...] [--steps N] [--step SECONDS]
                                 [--json FILE]

The computed speed is that of a ring all-reduce that starts after the backward pass, so that nothing overlaps.
In each step a rank sends and receives 2 (R - 1) / R times the bytes of the gradients, in 2 (R - 1) messages.
A step of R ranks then takes step + 2 (R - 1) / R * bytes / bandwidth + 2 (R - 1) * latency.
"""
import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import startup  # noqa: E402
from run import one_core  # noqa: E402

from networks import build_sesemi  # noqa: E402
from sesemi.flags import NETWORKS  # noqa: E402
from sesemi.system.files import write_json  # noqa: E402

STEP = 0.053            # seconds, convnet at 192 images: published for an Ascend 910
BANDWIDTHS = 1, 10, 100         # Gbit/s
LATENCY = 50e-6         # seconds per message, for TCP in a machine room
RANKS = 2, 4, 8, 16, 32


def gradient_bytes(network):
    """The bytes that a step has to average: 4 for each trainable parameter, with 10 classes."""
    model, _ = build_sesemi(network, (32, 32, 3), 10)
    return 4 * sum(weight.shape.num_elements() for weight in model.trainable_weights)


def compute_step(step, gradients, ranks, bandwidth, latency=LATENCY):
    """Seconds of a step on so many ranks.

    step: seconds on one rank; gradients: bytes; bandwidth: Gbit/s; latency: seconds per message.
    """
    return step + 2 * (ranks - 1) / ranks * gradients * 8 / (bandwidth * 1e9) + 2 * (ranks - 1) * latency


def measure_step(network, workers, steps):
    """Seconds of the median step with so many workers on this machine, each on its own core."""
    flags = ['--data', 'digits', '--labels', 'all', '--batch-size', '16', '--network', network,
             '--device', 'cpu']
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for free in sockets:
            free.bind(('127.0.0.1', 0))
        addresses = ','.join('127.0.0.1:%d' % free.getsockname()[1] for free in sockets)
        for free in sockets:
            free.close()
        for rank in range(1, workers):
            with one_core(rank):
                process = subprocess.Popen(
                    [sys.executable, os.path.join(startup.PROJECT, 'train_evaluate_sesemi.py'), *flags,
                     '--workers', addresses, '--rank', str(rank)],
                    # hides its message that rank 0 is lost, which is killed after the last step
                    stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
        with one_core(0):
            return startup.measure(flags + (['--workers', addresses, '--rank', '0'] if workers > 1 else []),
                                   cache, steps)['step']


def main():
    """Measure, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0] + '.')
    parser.add_argument('--network', choices=NETWORKS, default='convnet')
    parser.add_argument('--workers', type=int, nargs='*', default=[1, 2], metavar='N',
                        help='numbers of workers to measure (default: 1 2)')
    parser.add_argument('--steps', type=int, default=8, metavar='N')
    parser.add_argument('--step', type=float, default=STEP, metavar='SECONDS',
                        help='a step on one device, for the computed speed (default: 0.053, published '
                        'for the convnet on an Ascend 910)')
    parser.add_argument('--json', metavar='FILE')
    args = parser.parse_args()
    gradients = gradient_bytes(args.network)
    print('%s: %.1f MB of gradients a step' % (args.network, gradients / 1e6))
    found = {'network': args.network, 'bytes': gradients, 'measured': {}, 'modelled': {}}
    for workers in args.workers:
        seconds = found['measured'][workers] = measure_step(args.network, workers, args.steps)
        print('R = %d, one core each: %.2f s a step, %.1f images/s'
              % (workers, seconds, workers * 192 / seconds), flush=True)
    print('computed: percent of R times the speed of one rank, from %g ms a step:' % (1e3 * args.step))
    print('%12s' % 'R' + ''.join('%8d' % ranks for ranks in RANKS))
    for bandwidth in BANDWIDTHS:
        shares = found['modelled'][bandwidth] = [
            args.step / compute_step(args.step, gradients, ranks, bandwidth) for ranks in RANKS]
        print('%5d Gbit/s ' % bandwidth + ''.join('%7.0f%%' % (100 * share) for share in shares))
    if args.json:
        write_json(args.json, found)


if __name__ == '__main__':
    main()
