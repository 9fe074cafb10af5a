"""The device of a run and its options. The packages in tests/stand_ins take the place of an NPU's adapter."""
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import PROJECT
from programs import STAND_INS, copy_project, run

import train_evaluate_sesemi
from sesemi.device import devices, npu, nvidia, runtime
from sesemi.errors import InputError
from sesemi.flags import PRECISION_HELP

ALWAYS = {'use_off_line': True, 'graph_run_mode': 1, 'iterations_per_loop': 1}
ADAPTERS = 'npu_bridge', 'npu_device'       # for TensorFlow 1 and 2
ADAPTER = ADAPTERS[runtime.tf.__version__ >= '2']
ONEDNN = '1' if platform.machine() == 'x86_64' and not runtime.tf.__version__.startswith('2.6.') else None


# On the NPU


@pytest.fixture(scope='module')
def npu_run(tmp_path_factory):
    """(the stand-in's record of a whole run, the run's folder)."""
    root = tmp_path_factory.mktemp('npu')
    code = copy_project(root / 'code')
    status, out, err = run(
        'bash', code / 'run_1p.sh', '--data', 'digits', '--network', 'nin', '--labels', '10',
        '--batch-size', '1', '--epochs', '2', '--image-size', '16', '--result', root / 'result',
        '--device', 'npu', '--precision-mode', 'allow_mix_precision', '--over-dump', '--profiling',
        '--autotune', '--eval-every', '1', '--recompute-norm', 'False', cwd=root, PYTHONPATH=str(STAND_INS),
        NPU_BRIDGE_RECORD=str(root / 'record.json'))
    assert status == 0, out + err
    assert 'npu (asked for)' in out and 'It computes in allow_mix_precision.' in out
    assert out.splitlines()[-1].startswith('classification error rate: 0.')
    return json.loads((root / 'record.json').read_text()), root / 'result'


def function(npu_run, *images):
    session, = npu_run[0]['npu_sessions']
    found, = [function for function in session['functions'] if sorted(function['images']) == sorted(images)]
    return found


def test_npu_run_is_in_one_npu_session_which_is_closed(npu_run):
    seen, result = npu_run
    session, = seen['npu_sessions']
    assert seen['host_sessions'] == 0
    assert session['closed']
    assert session['off'] == ['remapping', 'memory_optimization']
    assert (result / 'sesemi.h5').exists() and (result / 'result.json').exists()


def test_npu_flags_are_in_the_parameter_map(npu_run):
    session, folder = npu_run[0]['npu_sessions'][0], npu_run[1]
    parameters = dict(session['parameters'])
    assert json.loads(parameters.pop('profiling_options')) == {
        'output': str(folder / 'profiling'), 'training_trace': 'on', 'task_trace': 'on',
        'fp_point': '', 'bp_point': ''}
    assert parameters == dict(
        ALWAYS, precision_mode='allow_mix_precision', enable_dump_debug=True,
        dump_path=str(folder / 'over_dump'), dump_debug_mode='all', profiling_mode=True,
        aoe_mode='2')


def test_npu_optimizer_is_wrapped_once_and_its_gradients_are_reduced_once(npu_run):
    assert npu_run[0]['wrapped'] == 1
    assert npu_run[0]['reductions'] == 1


def test_npu_compiles_one_training_and_one_evaluation_graph(npu_run):
    training, evaluation = function(npu_run, 'self_data', 'super_data'), function(npu_run, 'super_data')
    assert training['batches'] == [[[6, 16, 16, 3], [6, 16, 16, 3]]]
    assert evaluation['batches'] == [[[178, 16, 16, 3]]]      # 355 test images in two batches


def test_npu_runs_once_a_step_and_compiles_few_graphs(npu_run):
    runs = npu_run[0]['npu_sessions'][0]['runs']
    assert len(runs) <= 6, runs
    training_graph, = [graph for graph in runs if 'self_data' in graph]
    assert runs[training_graph] == 20
    # beside the steps: two evaluations and the report of 2 batches and 4 views each, the first weights, two
    # times reading weights, and Keras' check for uninitialised variables
    assert sum(runs.values()) <= 20 + 3 * 8 + 5, runs


@pytest.mark.parametrize('nodes, level, onednn, variable', [
    (['/dev/davinci0'], None, None, None),
    ([], '3', ONEDNN, 'KERAS_HOME')])
def test_what_is_set_before_tensorflow_is_imported(tmp_path, nodes, level, onednn, variable):
    """The adapter's errors, its line about the compiled model too, are hidden by TF_CPP_MIN_LOG_LEVEL=3.

    The user's keras.json, in the home folder or where a variable says, is not read.
    """
    environment = {variable: str(tmp_path / '.keras')} if variable else {}
    code = '''
import glob, os
for name in 'TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS':
    os.environ.pop(name, None)        # the tests' own process has set it
real = glob.glob
glob.glob = lambda pattern, **options: %r if 'davinci' in pattern else real(pattern, **options)
import sesemi.device.runtime
print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'), os.environ.get('TF_ENABLE_ONEDNN_OPTS'))
keras = sesemi.device.runtime.keras.backend
print(keras.floatx(), keras.epsilon(), keras.image_data_format())
''' % nodes
    (tmp_path / '.keras').mkdir()
    (tmp_path / '.keras/keras.json').write_text(json.dumps({
        'floatx': 'float64', 'epsilon': 0.1, 'image_data_format': 'channels_first', 'backend': 'theano'}))
    status, out, err = run(sys.executable, '-c', code, cwd=PROJECT, PYTHONPATH=str(STAND_INS),
                           HOME=str(tmp_path), **environment)
    assert (status, out) == (0, '%s %s\nfloat32 1e-07 channels_last\n' % (level, onednn)), err


SESSIONS = '''
import os, sys
from sesemi.device import npu, runtime

folder = sys.argv[1]
dump = os.path.join(folder, 'data_dump')
options = [runtime.Options(),
           runtime.Options('force_fp16', data_dump=dump, data_dump_step='0|5|10-20')]
for each in options:
    with runtime.open_session('npu', each):
        pass

try:
    with runtime.open_session('npu') as session:
        raise LookupError
except LookupError:
    pass

os.environ.update(RANK_SIZE='8', RANK_ID='1', JOB_ID='10087', NPU_BRIDGE_ALL_REDUCE='127.0.0.1:1')
with runtime.open_session('npu'):
    runtime.optimizer('npu', 0.05, 0.9)

with runtime.open_session('cpu'):
    x = runtime.keras.backend.placeholder((None, 2, 2, 3), dtype='float64')     # a host session may have it
    runtime.keras.backend.function([x], [x + x])([[[[[1.] * 3] * 2] * 2]])
with runtime.open_session('npu'):
    x = runtime.keras.backend.placeholder((None, 2, 2, 3), dtype='float64')
    try:
        runtime.keras.backend.function([x], [x + x])([[[[[1.] * 3] * 2] * 2]])
    except TypeError as error:
        print(error)

for key, field, value in [
        ('auto_tune_mode', 's', b'RL,GA'), ('op_debug_level', 'i', 0), ('precision_mode', 's', b'float32'),
        ('aoe_mode', 's', b'RL,GA'), ('aoe_mode', 'i', 2), ('use_off_line', 's', b'True')]:
    config = npu.configure(runtime.tf.ConfigProto(), runtime.Options())
    custom, = config.graph_options.rewrite_options.custom_optimizers
    setattr(custom.parameter_map[key], field, value)
    try:
        runtime.tf.Session(config=config)
    except ValueError as error:
        print(error)
'''


@pytest.fixture(scope='module')
def sessions(tmp_path_factory):
    """(the stand-in's record of SESSIONS, what that printed, its folder)."""
    folder = tmp_path_factory.mktemp('sessions')
    status, out, err = run(sys.executable, '-c', SESSIONS, folder, cwd=PROJECT,
                           NPU_BRIDGE_RECORD=str(folder / 'record.json'),
                           PYTHONPATH=os.pathsep.join([str(PROJECT), str(STAND_INS)]))
    assert status == 0, err
    return json.loads((folder / 'record.json').read_text()), out, folder


def test_npu_parameters_of_other_flags(sessions):
    seen, _, folder = sessions
    plain, dump, failed, ranks, _ = [session['parameters'] for session in seen['npu_sessions']]
    assert plain == failed == ALWAYS
    assert dump == dict(ALWAYS, precision_mode='force_fp16', enable_dump=True,
                        dump_path=str(folder / 'data_dump'), dump_step='0|5|10-20', dump_mode='all')
    assert ranks == dict(ALWAYS, hcom_parallel=True)


def test_npu_sessions_are_closed_even_after_an_error(sessions):
    assert [session['closed'] for session in sessions[0]['npu_sessions']] == 5 * [True]


def test_the_stand_in_counts_host_sessions_and_refuses_what_the_adapter_does_not_know(sessions):
    assert sessions[0]['host_sessions'] == 1
    float64, *parameters = sessions[1].splitlines()
    assert float64.startswith('the NPU has no float64: ')
    assert parameters == ['the adapter does not know ' + parameter for parameter in (
        "auto_tune_mode = 'RL,GA'", 'op_debug_level = 0', "precision_mode = 'float32'", "aoe_mode = 'RL,GA'",
        'aoe_mode = 2', "use_off_line = 'True'")]


@pytest.mark.parametrize('mode', npu.PRECISION_MODES)
def test_the_adapter_gets_the_precision_that_was_asked_for(adapter, mode):
    adapter('npu_config_proto = lambda config: config')
    config = npu.configure(runtime.tf.ConfigProto(), runtime.Options(mode))
    custom, = config.graph_options.rewrite_options.custom_optimizers
    assert custom.parameter_map['precision_mode'].s == mode.encode() and mode in PRECISION_HELP


# Which device


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """adapter(code) installs an adapter, by default the fitting one, whose npu_init is this code."""
    def forget():
        for name in [name for name in sys.modules if name.split('.')[0] in ADAPTERS]:
            del sys.modules[name]

    def install(code, name=ADAPTER):
        forget()
        for module, text in {'': 'from npu_device import compat' if name == 'npu_device' else '',
                             '/compat': 'def enable_v1(): pass', '/compat/v1': ''}.items():
            (tmp_path / (name + module)).mkdir()
            (tmp_path / (name + module) / '__init__.py').write_text(text)
        folder = name if name == 'npu_bridge' else name + '/compat/v1'
        (tmp_path / folder / 'npu_init.py').write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    monkeypatch.undo()
    forget()


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """An Ascend host: its device nodes are /dev/davinci3 and one that every host may have."""
    monkeypatch.setattr(npu, 'NODES', str(tmp_path / os.path.basename(npu.NODES)))
    for name in 'davinci3', 'davinci_manager':
        (tmp_path / name).write_text('')


@pytest.mark.parametrize('code, part', [
    ('raise OSError("libge_runner.so: cannot open shared object")',
     'OSError: libge_runner.so: cannot open shared object'),
    ('import numpy.no_such_part', "ModuleNotFoundError: No module named 'numpy.no_such_part'")])
def test_npu_without_a_working_adapter(adapter, tmp_path, capsys, code, part):
    adapter(code)
    result = tmp_path / 'result'
    status = train_evaluate_sesemi.main(['--data', 'digits', '--labels', '10', '--device', 'npu',
                                         '--result', str(result)])
    out, err = capsys.readouterr()
    assert (status, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('--device npu: the Ascend adapter %s cannot be imported (' % ADAPTER)
    assert part in err and not (result / 'args.json').exists()


def test_auto_ends_with_an_adapter_that_fits_but_is_broken(adapter, nodes):
    adapter('raise OSError("libge_runner.so")')
    with pytest.raises(InputError, match='%s cannot be imported .OSError: libge_runner.so' % ADAPTER):
        devices.choose_device('auto')


@pytest.mark.parametrize('other', [True, False])
def test_an_ascend_host_without_a_fitting_adapter_says_so(adapter, nodes, monkeypatch, capsys, other):
    if other:
        adapter('', *set(ADAPTERS) - {ADAPTER})
    monkeypatch.setattr(devices, 'list_gpus', lambda: [])
    device, why = devices.choose_device('auto')
    assert device == 'cpu' and 'no %s;' % ADAPTER in why and 'TensorFlow 2' not in why
    out, err = capsys.readouterr()
    assert out == '' and err == (
        'This run is on the CPU: TensorFlow %s cannot use the Ascend NPU: %s is not installed '
        '(npu_bridge fits TensorFlow 1, npu_device TensorFlow 2); set PYTHON to an interpreter '
        'that has TensorFlow and its adapter, or say --device cpu.\n' % (runtime.tf.__version__, ADAPTER))
    with pytest.raises(InputError) as error:
        devices.choose_device('npu')
    assert str(error.value) == err.strip().replace('This run is on the CPU:', '--device npu:')


@pytest.mark.parametrize('installed', [True, False])
@pytest.mark.parametrize('node', [True, False])
@pytest.mark.parametrize('gpu', [True, False])
def test_auto_takes_the_npu_only_with_adapter_and_node(adapter, tmp_path, monkeypatch, installed, node, gpu):
    for name in 'ASCEND_DEVICE_ID', 'RANK_ID', 'RANK_SIZE', 'JOB_ID':     # as run_1p.sh sets them everywhere
        monkeypatch.setenv(name, '0')
    if installed:
        adapter('')
    monkeypatch.setattr(npu, 'NODES', str(tmp_path / os.path.basename(npu.NODES)))
    monkeypatch.setattr(devices, 'list_gpus', lambda: ['GPU'] if gpu else [])
    (tmp_path / 'davinci_manager').write_text('')
    if node:
        (tmp_path / 'davinci3').write_text('')
    device, why = devices.choose_device('auto')
    assert device == ('npu' if installed and node else 'gpu' if gpu else 'cpu')
    assert ('davinci3' in why) == (device == 'npu') and ('no ' + ADAPTER in why) == (not installed)
    assert ('finds a GPU' in why) == (device == 'gpu') and ('finds no GPU' in why) == (device == 'cpu')


def test_auto_does_not_import_the_adapter(adapter, monkeypatch, tmp_path):
    adapter('raise AssertionError("it patches TensorFlow")')
    monkeypatch.setattr(npu, 'NODES', str(tmp_path / 'none'))
    monkeypatch.setattr(devices, 'list_gpus', lambda: [])
    assert devices.choose_device('auto')[0] == 'cpu'


# A GPU that TensorFlow cannot use


@pytest.fixture
def add_card(tmp_path, monkeypatch):
    """A machine without device nodes of cards; add_card() adds that of an NVIDIA card."""
    monkeypatch.setattr(npu, 'NODES', str(tmp_path / 'davinci[0-9]*'))
    monkeypatch.setattr(nvidia, 'GPU_NODES', (str(tmp_path / 'nvidia[0-9]*'),))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    (tmp_path / 'nvidiactl').write_text('')     # a container without a card may have it
    return lambda: (tmp_path / 'nvidia0').write_text('')


def test_without_a_card_the_cpu_is_used_silently_and_gpu_is_refused(add_card, monkeypatch, capsys):
    monkeypatch.setattr(devices, 'list_gpus', lambda: [])
    assert devices.choose_device('auto')[0] == 'cpu'
    assert capsys.readouterr() == ('', '')
    with pytest.raises(InputError, match='--device gpu: there is no NVIDIA card here'):
        devices.choose_device('gpu')


def has_driver():
    try:
        return bool(ctypes.CDLL('libcuda.so.1'))
    except OSError:
        return False


@pytest.mark.skipif(has_driver() or not runtime.tf.test.is_built_with_cuda(),
                    reason='needs a build for CUDA and no driver')
def test_a_card_that_tensorflow_cannot_use_is_reported_or_refused(add_card, capsys):
    add_card()
    assert devices.choose_device('auto')[0] == 'cpu'
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert err.startswith('This run is on the CPU: TensorFlow %s cannot use the NVIDIA card: '
                          'libcuda.so.1 of the driver is missing; install ' % runtime.tf.__version__)
    with pytest.raises(InputError) as error:
        devices.choose_device('gpu')
    assert str(error.value) == err.strip().replace('This run is on the CPU:', '--device gpu:')


# A line of TensorFlow 2.21. In 1.15 only its beginning differs.
NOT_LOADED = ("I0000 00:00:1795558998.733599 7283 dso_loader.cc:144] "
              "Could not load dynamic library '%s'; dlerror\n")
REFUSED = ('failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: '
           'CUDA_ERROR_NO_DEVICE: no device\n')


@pytest.mark.parametrize('version, log, reason', [
    ('2.21.0', REFUSED, "CUDA_VISIBLE_DEVICES is '7', which names none; unset it"),
    ('2.21.0', ''.join(map(NOT_LOADED.__mod__, ['libnvinfer.so.10', 'libcudnn.so.9', 'libcudart.so.12'])),
     'CUDA is missing (libcudart.so.12, libcudnn.so.9); '
     'run %s -m pip install -r requirements-gpu.txt' % sys.executable),
    ('1.15.0', NOT_LOADED % 'libcudart.so.10.0',
     'CUDA is missing (libcudart.so.10.0); start with PYTHON= TENSORFLOW=2 bash run_1p.sh'),
    ('2.21.0', 'CUDA_ERROR_INSUFFICIENT_DRIVER', 'its log tells the cause; read it with --verbose')])
def test_the_log_tells_why_a_card_is_not_used_and_the_remedy(version, log, reason, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '7')
    assert nvidia.find_cause(log, version, True) == reason
    assert nvidia.find_cause(log, version, False).startswith('it is built for CPUs alone; ')


@pytest.mark.skipif(not shutil.which('cc'), reason='needs a compiler')
def test_cuda_libraries_that_tensorflow_does_not_look_for_are_loaded(tmp_path, monkeypatch):
    """A library that has been loaded is found by its name, wherever it is; before that it is not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(nvidia, 'GPU_NODES', (str(tmp_path),))
    for name in 'libcusolver.so.11', 'libnccl.so.2':
        path = tmp_path / 'nvidia' / name[3:].split('.')[0] / 'lib' / name
        path.parent.mkdir(parents=True)
        subprocess.run(['cc', '-shared', '-Wl,-soname,' + name, '-o', str(path), '-xc', os.devnull],
                       check=True)
        with pytest.raises(OSError):
            ctypes.CDLL(name)
    devices.list_gpus()
    assert ctypes.CDLL('libcusolver.so.11') and ctypes.CDLL('libnccl.so.2')


def test_early_lines_of_tensorflow_are_not_shown_and_all_others_are():
    """At the end TensorFlow aborts, as on a CPU that it was not built for."""
    lines = [b'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR',
             b'I0000 00:00:1795558566.395856    4549 cudart_stub.cc:31] '
             b'Could not find cuda drivers on your machine, GPU will not be used.',
             b'E0000 00:00:1795558566.395856    4549 cuda_fft.cc:477] '
             b'Unable to register cuFFT factory: Attempting to register factory',
             b'E0000 00:00:1795558566.395856    4549 some_file.cc:1] some error', b'']
    status, out, err = run(sys.executable, '-c', '''
import os, sys
from sesemi.device import backend

with backend.filtered_stderr():
    os.write(2, %r)
    print('written by Python', file=sys.stderr)
os.write(2, b'I0000 afterwards' + os.linesep.encode())
with backend.filtered_stderr():
    os.write(2, b'F0000 the last words')
    os.abort()
''' % b'\n'.join(lines), cwd=PROJECT, TF_CPP_MIN_LOG_LEVEL='3')
    assert (status, out) == (-signal.SIGABRT, '')
    assert err.splitlines() == [lines[3].decode(), 'written by Python', 'I0000 afterwards',
                                'F0000 the last words']


# Mixed precision on a GPU, as far as a CPU can show it


@pytest.fixture
def train_half():
    """train_half(mixed, factor): gradient and updated weight of a step whose loss is 2 * factor * weight.

    The product is float16, as the graph rewrite makes products on a GPU. The weight starts at 1. With and
    without mixed precision there are two weights, each with its own optimizer.
    """
    tf, backend = runtime.tf, runtime.keras.backend

    def build(options):
        optimizer = runtime.optimizer('gpu', 0.5, 0.9, options)
        factor, weight = tf.placeholder(tf.float32, ()), backend.variable(1.)
        loss = tf.cast(tf.cast(weight, tf.float16) * tf.cast(2., tf.float16), tf.float32) * factor
        gradient, = optimizer.get_gradients(loss, [weight])
        with tf.control_dependencies([*optimizer.get_updates(loss, [weight]), gradient]):
            return factor, gradient, weight.read_value()

    with runtime.open_session('cpu'):
        built = {mixed: build(runtime.Options('mixed' if mixed else None)) for mixed in (False, True)}
        session = backend.get_session()     # initialises the variables
        yield lambda mixed, factor: session.run(built[mixed][1:], {built[mixed][0]: factor})
    tf.train.experimental.disable_mixed_precision_graph_rewrite()


def test_mixed_precision_scales_the_loss_and_unscales_the_gradient(train_half):
    assert train_half(False, 2e-8)[0] == 0      # float16 has no number so small
    assert train_half(True, 2e-8)[0] == pytest.approx(4e-8, rel=1e-3)
    assert train_half(True, 0.25)[0] == train_half(False, 0.25)[0] == 0.5


def test_mixed_precision_skips_an_update_that_overflows_and_lowers_the_scale(train_half):
    """The gradient overflows float16 at the first scale, 2 ** 15, and at half of it, but not at a quarter."""
    mixed, plain = ([train_half(mixed, 2.)[1] for _ in range(steps)]
                    for mixed, steps in ((True, 4), (False, 2)))
    assert mixed == [1, 1, *plain] and len({1, *plain}) == 3


# Options of a device


def options(device, precision_mode=None, **given):
    args = train_evaluate_sesemi.parse_args([])
    args.precision_mode = precision_mode
    vars(args).update(given)
    return devices.device_options(device, args)


def test_options_have_their_folders_in_the_result():
    result = os.path.abspath('result')
    dumping = options('npu', 'force_fp16', data_dump=True, data_dump_step='0|5', autotune=True)
    assert dumping == runtime.Options(
        'force_fp16', data_dump=result + '/data_dump', data_dump_step='0|5', autotune=True)
    assert options('npu', over_dump=True, profiling=True) == runtime.Options(
        over_dump=result + '/over_dump', profiling=result + '/profiling')
    profiling = runtime.Options('float32', profiling=result + '/profiling')
    assert options('cpu', profiling=True) == options('gpu', profiling=True) == profiling
    assert options('gpu', 'mixed') == runtime.Options('mixed')


@pytest.mark.parametrize('device, given, part', [
    ('cpu', {'precision_mode': 'force_fp16'}, '--precision-mode force_fp16: the cpu has'),
    ('cpu', {'over_dump': True}, '--over-dump: only the npu'),
    ('gpu', {'data_dump': True}, '--data-dump: only the npu'),
    ('cpu', {'autotune': True}, '--autotune: only the npu')])
def test_options_that_a_device_does_not_have(device, given, part):
    with pytest.raises(InputError, match=part):
        options(device, **given)


def test_auto_with_device_node_and_broken_adapter(adapter, monkeypatch, tmp_path):
    adapter('raise OSError("libge_runner.so is missing")')
    monkeypatch.setattr(npu, 'NODES', str(tmp_path))
    with pytest.raises(InputError, match='libge_runner.so is missing'):
        devices.choose_device('auto')
