"""--precision-mode: the modes of each device, refusals, and bfloat16 on a CPU.

SESEMI_BFLOAT16=1 turns on the tests that need a processor and a TensorFlow 2 with bfloat16.
"""
import json
import os
import random
import re

import numpy as np
import pytest
from conftest import write_classes
from programs import TINY, read_until, run, same_weights, start

import networks
import predict
import train_evaluate_sesemi
from sesemi.device import npu, nvidia, precision, runtime
from sesemi.errors import InputError

needs_bfloat16 = pytest.mark.skipif(
    'SESEMI_BFLOAT16' not in os.environ,
    reason='SESEMI_BFLOAT16=1 turns it on: TensorFlow 2 on a processor with amx_bf16 or avx512_bf16')
NEW = 'model name\t: A\nflags\t\t: fpu sse2 avx512_bf16 amx_bf16\n\nflags\t\t: fpu\n'
ZEN, OLD, ARM = NEW.replace(' amx_bf16', ''), 'flags\t\t: fpu sse2 avx512f\n', 'Features\t: fp asimd bf16\n'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(cpuinfo, tensorflow=..., system=..., ...) makes this machine look like another."""
    def become(cpuinfo, tensorflow='2.21.0', system='Linux', architecture='x86_64', onednn=None, nodes=()):
        (tmp_path / 'cpuinfo').write_text(cpuinfo)
        monkeypatch.setattr(precision, 'CPUINFO', str(tmp_path / 'cpuinfo'))
        monkeypatch.setattr(npu, 'NODES', str(tmp_path / 'davinci[0-9]*'))
        monkeypatch.setattr(nvidia, 'GPU_NODES', (str(tmp_path / 'nvidia[0-9]*'),))
        monkeypatch.setattr(precision.platform, 'system', lambda: system)
        monkeypatch.setattr(precision.platform, 'machine', lambda: architecture)
        monkeypatch.delenv('TF_ENABLE_ONEDNN_OPTS', raising=False)
        if onednn:
            monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', onednn)
        for module in train_evaluate_sesemi, predict:
            monkeypatch.setattr(module, 'tensorflow_version', lambda: tensorflow)
        for node in nodes:
            (tmp_path / node).write_text('')
    return become


@pytest.mark.parametrize('cpuinfo, others, remedy', [
    (OLD, {}, 'amx_bf16 or avx512_bf16'),
    (ARM, {}, 'amx_bf16 or avx512_bf16'),
    (ARM, {'architecture': 'aarch64'}, 'Linux on x86-64'),
    (NEW, {'system': 'Darwin'}, 'Linux on x86-64'),
    (NEW, {'tensorflow': '1.15.0'}, 'TENSORFLOW=2 bash run_1p.sh'),
    (NEW, {'tensorflow': '2.14.1'}, 'TENSORFLOW=2 bash run_1p.sh'),
    (NEW, {'tensorflow': None}, 'TENSORFLOW=2 bash run_1p.sh'),
    (NEW, {'onednn': '0'}, 'unset TF_ENABLE_ONEDNN_OPTS')])
def test_mixed_on_a_cpu_that_cannot_is_refused_before_reading(machine, tmp_path, cpuinfo, others, remedy):
    machine(cpuinfo, **others)
    for given in (['--device', 'cpu'], []):
        for parse, words in ((train_evaluate_sesemi.parse_args, ['--data', 'folder', '--dataset', 'nowhere']),
                             (predict.parse_args, ['no.h5', 'no.png'])):
            with pytest.raises(InputError) as error:
                parse([*words, '--precision-mode', 'mixed', *given])
            assert str(error.value).startswith('--precision-mode mixed: on a CPU it needs ')
            assert remedy in str(error.value)
            assert '--precision-mode float32' in str(error.value)


@pytest.mark.parametrize('cpuinfo', [NEW, ZEN])
def test_mixed_where_the_processor_has_bfloat16(machine, cpuinfo):
    machine(cpuinfo, tensorflow='2.15.0.post1', onednn='1')
    assert train_evaluate_sesemi.parse_args(['--precision-mode', 'mixed']).precision_mode == 'mixed'
    assert predict.parse_args(['no.h5', 'no.png', '--precision-mode', 'mixed']).precision_mode == 'mixed'
    words = precision.opening_sentence('cpu', 'float32', '2.15.0')
    assert '--precision-mode mixed' in words and ('quarter' in words) == (cpuinfo == NEW)
    assert 'bfloat16' in precision.opening_sentence('cpu', 'mixed', '2.15.0')
    assert precision.opening_sentence('cpu', 'float32', '1.15.0') == ''
    for mode, words in (None, 'the precision of the platform'), ('force_fp16', 'force_fp16'):
        assert precision.opening_sentence('npu', mode, '1.15.0') == ' It computes in %s.' % words


@pytest.mark.parametrize('node', ['nvidia0', 'davinci0'])
def test_mixed_is_not_refused_before_the_device_is_known(machine, node):
    machine(OLD, nodes=[node])
    assert train_evaluate_sesemi.parse_args(['--precision-mode', 'mixed']).precision_mode == 'mixed'
    with pytest.raises(InputError, match='on a CPU it needs'):
        train_evaluate_sesemi.parse_args(['--precision-mode', 'mixed', '--device', 'cpu'])


@pytest.mark.parametrize('device, mode, part', [
    ('npu', 'mixed', 'the npu has force_fp32, force_fp16, cube_fp16in_fp32out, must_keep_origin_dtype, '
     'allow_fp32_to_fp16, allow_mix_precision, allow_mix_precision_fp16, allow_mix_precision_bf16, '
     'allow_fp32_to_bf16;'),
    ('npu', 'float32', 'allow_fp32_to_fp16'), ('gpu', 'force_fp16', 'the gpu has float32, mixed'),
    ('cpu', 'bf16', 'the cpu has float32, mixed')])
def test_a_mode_of_another_device_is_refused(device, mode, part):
    with pytest.raises(InputError, match=part):
        precision.check(device, mode, '2.21.0')


def resumed(tmp_path, mode, *given):
    (tmp_path / 'args.json').write_text(
        json.dumps({'flags': {'data': 'digits', 'precision_mode': mode}, 'data_checksum': ''}))
    return train_evaluate_sesemi.parse_args(['--result', str(tmp_path), '--resume', *given]).precision_mode


def test_a_resumed_run_keeps_its_precision_if_its_device_has_it(machine, tmp_path):
    machine(NEW)
    assert resumed(tmp_path, 'mixed') == 'mixed' and resumed(tmp_path, 'mixed', '--device', 'cpu') == 'mixed'
    assert resumed(tmp_path, 'mixed', '--precision-mode', 'float32') == 'float32'
    assert resumed(tmp_path, 'force_fp16', '--device', 'cpu') is None and resumed(tmp_path, None) is None
    assert resumed(tmp_path, 'mixed', '--device', 'npu', '--precision-mode', 'force_fp16') == 'force_fp16'
    machine(OLD)
    assert resumed(tmp_path, 'mixed', '--device', 'cpu') is None
    with pytest.raises(InputError, match='say --precision-mode float32'):
        resumed(tmp_path, 'mixed')


def test_the_default_is_float32_except_on_the_npu(machine):
    assert precision.resolve('cpu', None) == precision.resolve('gpu', None) == 'float32'
    assert precision.resolve('npu', None) is None and precision.resolve('npu', 'force_fp16') == 'force_fp16'


def test_the_loss_is_scaled_on_a_gpu_alone():
    """A CPU needs no scaling, because bfloat16 has the range of float32."""
    with runtime.open_session('cpu'):
        plain = runtime.optimizer('cpu', 0.05, 0.9, runtime.Options('mixed'))
    assert type(plain) is runtime.keras.optimizers.SGD


@pytest.fixture(scope='module')
def flags_of_a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_classes(folder / 'train', {'cat': 8, 'dog': 8}, 16)
    write_classes(folder / 'test', {'cat': 3, 'dog': 3}, 16)
    return ['--data', 'folder', '--dataset', folder, '--network', 'nin', '--image-size', '16',
            '--batch-size', '4', '--epochs', '3', '--labels', 'all', '--device', 'cpu']


@pytest.mark.parametrize('began, device, said', [
    ('mixed', 'gpu', 'mixed (float16)'), ('force_fp16', None, 'force_fp16'), (None, None, '')])
def test_a_run_resumed_in_another_precision_says_so(train, flags_of_a_run, tmp_path, began, device, said):
    """args.json keeps the precision that the run began with, result.json has that of its end."""
    done = train(*flags_of_a_run, '--epochs', '2', '--result', tmp_path / 'run')
    assert done.status == 0, done.err
    (tmp_path / 'run/result.json').unlink()
    record = json.loads((tmp_path / 'run/args.json').read_text())
    assert record['flags']['precision_mode'] == 'float32'
    record['flags']['precision_mode'] = began
    record.pop('device')
    record.update({'device': device} if device else {})
    (tmp_path / 'run/args.json').write_text(json.dumps(record))
    done = train('--result', tmp_path / 'run', '--resume', '--device', 'cpu', '--precision-mode', 'float32')
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if 'the run began in' in line]
    assert lines == (['Precision: float32 from here on; the run began in %s.' % said] if said else [])
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert (result['precision_mode'], result['flags']['precision_mode']) == ('float32', began)


def convolutions(options):
    """The types of the convolutions in the graph of a training step as it ran."""
    tf, found = runtime.tf, []
    with runtime.open_session('cpu', options) as session:
        model, _ = networks.build_sesemi('nin', (16, 16, 3), 10)
        gradients = tf.gradients(tf.add_n([tf.reduce_sum(output) for output in model.outputs]),
                                 model.trainable_weights)
        session.run(tf.global_variables_initializer())
        seen = tf.RunMetadata()
        session.run(gradients,
                    {**{data: np.zeros((6, 16, 16, 3)) for data in model.inputs},
                     runtime.keras.backend.learning_phase(): True},
                    tf.RunOptions(output_partition_graphs=True), seen)
        for graph in seen.partition_graphs:
            found += [tf.as_dtype(node.attr['T'].type).name for node in graph.node
                      if 'Conv2D' in node.op and 'T' in node.attr]
    return found


@needs_bfloat16
def test_the_convolutions_that_ran_are_bfloat16():
    plain, mixed = convolutions(runtime.Options('float32')), convolutions(runtime.Options('mixed'))
    assert set(plain) == {'float32'} and mixed.count('bfloat16') == len(mixed) == len(plain) > 50


@needs_bfloat16
def test_bfloat16_runs_are_equal_to_the_bit_even_if_killed_and_resumed(flags_of_a_run, tmp_path):
    mixed = [*flags_of_a_run, '--epochs', '30', '--precision-mode', 'mixed', '--resume', 'auto',
             '--checkpoint-minutes', '0.0001']
    once, again = (run(TINY, *mixed, '--result', tmp_path / name) for name in ('once', 'again'))
    assert once.status == again.status == 0, once.err
    assert 'Precision: mixed (bfloat16).' in once.out
    killed = start(TINY, *mixed, '--result', tmp_path / 'killed')
    read_until(killed, 'Epoch 2/30')
    killed.stdout.read(random.Random(0).randrange(2000))
    killed.kill()
    killed.communicate()
    done = run(TINY, *mixed, '--result', tmp_path / 'killed')
    assert done.status == 0 and not re.search('^Epoch 1/30$', done.out, re.MULTILINE), done.err
    for other in 'again', 'killed':
        assert same_weights(tmp_path / 'once', tmp_path / other)
