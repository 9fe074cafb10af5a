"""The flags of train_evaluate_sesemi.py in one table: their parser, defaults and part in --resume."""
import argparse
from typing import NamedTuple

from sesemi.errors import InputError
from sesemi.settings import FITS, LEARNING_RATE, MAX_WHITENED_SIZE, METHODS, NETWORKS, PRESETS, SPLIT_SEED
from sesemi.system.command_line import SWITCH_OPTIONS, Parser, fraction, positive_number, whole_number

# What --resume does with a flag. IDENTITY: the recorded value stays, since another one would be another run.
# KEPT: the recorded value stays unless the flag is given again. NOT_KEPT: the recorded value is ignored.
IDENTITY, KEPT, NOT_KEPT = 'identity', 'kept', 'not kept'


class Flag(NamedTuple):
    """A row of the table.

    default: None if it depends on other flags or on the data; resumed: IDENTITY, KEPT or NOT_KEPT; options:
    further arguments of argparse's add_argument.
    """
    name: str
    default: object
    resumed: str
    help: str
    options: dict


def _flag(name, default, resumed, text, **options):
    return Flag(name, default, resumed, text, options)


def _switch(name, resumed, text, default=False):
    return Flag(name, default, resumed, text, SWITCH_OPTIONS)


def _image_size(text):
    if text not in map(str, range(16, 129, 4)):
        raise argparse.ArgumentTypeError('%s is not a multiple of 4 from 16 to 128' % text)
    return int(text)


def _labels(text):
    return text if text == 'all' else whole_number(1)(text)


def _gpus(text):
    if text != 'all' and not all(map(str.isdecimal, text.split(','))):
        raise argparse.ArgumentTypeError('%s is neither all nor a list of numbers, as in 0,1' % text)
    return text


def _steps(text):
    for part in text.split('|'):
        first, dash, last = part.partition('-')
        if not first.isdecimal() or dash and not (last.isdecimal() and int(first) < int(last)):
            raise argparse.ArgumentTypeError('%s is not a list of steps, as in 0|5|10-20' % text)
    return text


PRECISION_HELP = (
    'cpu, gpu: float32 (default) or mixed; mixed is float16 on a gpu and bfloat16 on a cpu, which needs '
    'TensorFlow 2 and a processor with amx_bf16 or avx512_bf16. npu: force_fp32, force_fp16, '
    'cube_fp16in_fp32out, must_keep_origin_dtype, allow_fp32_to_fp16, allow_mix_precision, '
    'allow_mix_precision_fp16, allow_mix_precision_bf16 or allow_fp32_to_bf16 (default: the precision of the '
    'platform)')

TABLE = {
    'data': [
        _flag('data', 'cifar10', IDENTITY, 'data set; it sets the defaults of other flags (default: cifar10)',
              choices=list(PRESETS)),
        _flag('dataset', None, KEPT,
              'folder of the data set: with train/CLASS/* and test/CLASS/*, CLASS/*, list.csv, the official '
              'CIFAR batches or archive, or the SVHN .mat files (default: dataset/cifar-10, downloaded once)',
              metavar='DIR'),
        _flag('labels', 1000, IDENTITY, 'total number of labeled images (default: 1000)', type=_labels,
              metavar='N|all'),
        _flag('validation', None, IDENTITY,
              'hold out this fraction of the labeled images of each class, as 0.1, to measure the error '
              'during training; for data without validation images of its own', type=fraction(0.5),
              metavar='X'),
        _flag('split_seed', SPLIT_SEED, IDENTITY,
              'seed that chooses the labeled images (default: 1, the published split)',
              type=whole_number(0, 2 ** 32 - 1), metavar='N'),
        _flag('image_size', 32, IDENTITY,
              'side of the images in pixels, a multiple of 4 from 16 to 128 (default: 32)', type=_image_size,
              metavar='N'),
        _flag('fit', 'stretch', IDENTITY, 'how to make images square (default: stretch)', choices=FITS),
        _flag('whitening', None, IDENTITY,
              'after contrast normalisation, apply ZCA whitening (zca), standardise each color (channel), or '
              'do nothing (none). Default: auto, which is none for svhn and digits, zca for cifar10 and '
              'cifar100, and for folder depends on the number of images',
              choices=['auto', 'zca', 'channel', 'none']),
        _flag('memory_limit', None, KEPT,
              'images that need more memory than this are read from disk during training (default: half '
              'of the memory, divided by the processes of the host)', type=positive_number, metavar='GB'),
        _switch('no_cache', NOT_KEPT, 'neither read nor write the cache of decoded images and whitening'),
        _switch('no_flip', IDENTITY, 'no left-right flips, for images whose mirror image is of another class '
                                     '(always for svhn and digits)'),
    ],
    'method': [
        _flag('network', 'convnet', IDENTITY, 'trunk to train (default: convnet)', choices=NETWORKS),
        _flag('init', None, IDENTITY,
              'begin with the weights of a saved model, the sesemi.h5 of another run, and use its whitening; '
              '--network and --image-size must be those of that run', metavar='MODEL'),
        _flag('method', 'asl', IDENTITY,
              'asl: self-supervision on the labeled images; ssl: on all training images; supervised: none '
              '(default: asl)', choices=METHODS),
        _flag('epochs', None, IDENTITY,
              'epochs to train (default: 300; ssl: 50, on svhn 30; digits: about 75 steps, at least one '
              'epoch)', type=whole_number(1), metavar='N'),
        _flag('batch_size', None, IDENTITY,
              'self-branch images a step, six views of each; a step also has six times as many labeled '
              'images (default: 16; digits: 4)', type=whole_number(1), metavar='N'),
        _flag('lr', LEARNING_RATE, IDENTITY, 'learning rate of the first step (default: 0.05)',
              type=positive_number, metavar='X'),
        _switch('no_oversample', IDENTITY,
                'use only as many labeled images a step as self-branch images, each augmented six times'),
        _switch('recompute_norm', IDENTITY,
                'measure the batch-norm statistics again, on training batches, before evaluating and saving; '
                'the averages kept in training lag behind (default: True for digits and folder)',
                default=None),
        _flag('class_weights', None, IDENTITY,
              'weight the loss of labeled images so that small classes count as much as large ones',
              choices=['balanced']),
        _flag('seed', 0, IDENTITY, 'seed of the initial weights, batches and dropout (default: 0)',
              type=whole_number(0), metavar='N'),
    ],
    'run': [
        _flag('result', 'result', NOT_KEPT,
              'folder for the model and all other results (default: result)', metavar='DIR'),
        _flag('resume', None, NOT_KEPT, 'continue the run in --result; auto: start it if there is none',
              nargs='?', const='yes', choices=['yes', 'auto']),
        _flag('runs', 1, NOT_KEPT,
              'train N times with seeds --seed, --seed + 1, ..., each in its own folder in --result '
              '(default: 1)', type=whole_number(1), metavar='N'),
        _switch('quiet', NOT_KEPT, 'print one line an epoch instead of a progress line'),
        _switch('verbose', NOT_KEPT, "print TensorFlow's messages too"),
        _flag('eval_every', None, KEPT,
              'also evaluate every N epochs, on the validation images or, without these, on the test images; '
              '0: only at the end (default: 1 with validation images or ssl, else 0)',
              type=whole_number(0), metavar='N'),
        _flag('keep', 'last', IDENTITY,
              'weights to test and save: those of the last epoch, or those with the lowest validation error '
              '(default: last)', choices=['last', 'best']),
        _flag('checkpoint_minutes', 10.0, KEPT, 'save a checkpoint at least every X minutes (default: 10)',
              type=positive_number, metavar='X'),
    ],
    'device': [
        _flag('device', 'auto', NOT_KEPT, 'device to train on (default: auto)',
              choices=['auto', 'cpu', 'gpu', 'npu']),
        _flag('precision_mode', None, KEPT, PRECISION_HELP, metavar='MODE'),
        _switch('profiling', NOT_KEPT, 'write a trace to RESULT/profiling'),
        _switch('autotune', NOT_KEPT, 'npu: tune the operators (aoe_mode 2)'),
        _switch('over_dump', NOT_KEPT, 'npu: write detected overflows to RESULT/over_dump'),
        _switch('data_dump', NOT_KEPT, "npu: write operators' inputs and outputs to RESULT/data_dump"),
        _flag('data_dump_step', None, NOT_KEPT, 'steps for --data-dump, as 0|5|10-20 (default: 0)',
              type=_steps, metavar='STEPS'),
    ],
    'several devices': [
        _flag('gpus', None, NOT_KEPT, 'start a process for each of these GPUs of this host', type=_gpus,
              metavar='all|N,N'),
        _flag('workers', None, NOT_KEPT,
              'the addresses of all processes that train together, the same list for each (default: from '
              'TF_CONFIG, if set)', metavar='HOST:PORT,HOST:PORT'),
        _flag('rank', None, NOT_KEPT,
              "this process's position in --workers, from 0; rank 0 writes and prints", type=whole_number(0),
              metavar='N'),
        _flag('join_timeout', None, NOT_KEPT,
              'seconds to wait at the start for all processes (default: 1800)', type=positive_number,
              metavar='X'),
        _flag('peer_timeout', None, NOT_KEPT,
              'end the run if a process keeps the others waiting for this many seconds (default: 600)',
              type=positive_number, metavar='X'),
        _switch('scale_lr', IDENTITY, 'multiply --lr by the number of processes'),
    ],
    "older ports' flags": [
        _flag('gpu_id', None, NOT_KEPT, 'the GPU to use, a value for CUDA_VISIBLE_DEVICES', metavar='N'),
        _flag('obs_url', None, NOT_KEPT, 'ignored: boot_modelarts.py copies the results', metavar='URL'),
    ],
}
FLAGS = [flag for group in TABLE.values() for flag in group]
DEFAULTS = {flag.name: flag.default for flag in FLAGS}
IDENTITY_FLAGS = {flag.name: flag.default for flag in FLAGS if flag.resumed == IDENTITY}
RESUMED_FLAGS = [flag.name for flag in FLAGS if flag.resumed != NOT_KEPT]


def spell_flag(name):
    """Return a flag as it is typed on the command line: '--batch-size' for 'batch_size'."""
    return '--' + name.replace('_', '-')


def parse_given(argv):
    """Parse the flags in argv: returns {name: value} of those given. Raises InputError naming a wrong flag.

    Flags may be spelled with underscores too, as on ModelArts and in older ports.
    """
    argv = [word.split('=')[0].replace('_', '-') + word[len(word.split('=')[0]):] if word.startswith('--')
            else word for word in argv]
    parser = Parser(prog='train_evaluate_sesemi.py',
                    description='Train and evaluate SESEMI: image classification from few labels, '
                                'regularised by predicting rotations and flips. --flag value and '
                                '--flag=value are the same.')
    for title, flags in TABLE.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            # no default, so that the flags that were given can be told from the others
            group.add_argument(spell_flag(flag.name), help=flag.help, **flag.options)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if given.get('whitening') == 'auto':        # resolve() finds the value
        del given['whitening']
    return given


def resolve(given, recorded):
    """Return all flags as {name: value}, with a `flip` beside them.

    A flag has its value in `given`, else in `recorded`, which is from the run to resume, else its default or
    its data set's. Raises InputError if flags contradict each other.
    """
    args = {**DEFAULTS, **recorded, **given}
    if args['over_dump'] and args['data_dump']:
        raise InputError('--over-dump and --data-dump: the adapter does one of them at a time; leave one '
                         'out.')
    preset = PRESETS[args['data']]
    args['batch_size'] = args['batch_size'] or preset.batch_size
    if args['recompute_norm'] is None:
        args['recompute_norm'] = preset.recompute_norm
    if given.get('no_flip') is False and not preset.flip:
        raise InputError('--no-flip False: a mirrored image of %s is of another class or of none; leave the '
                         'flag out.' % args['data'])
    args['whitening'] = args['whitening'] or preset.whitening
    if given.get('whitening') == 'zca' and args['image_size'] > MAX_WHITENED_SIZE:
        raise InputError('--whitening zca: is for images of at most %d pixels; say channel or none, or lower '
                         '--image-size.'
                         % MAX_WHITENED_SIZE)
    args['flip'] = preset.flip and not args['no_flip']
    if args['gpus'] and 'device' not in given:
        args['device'] = 'gpu'
    return args


def unused_flags(args, ranks):
    """Yield a sentence for each flag that was given but has no effect."""
    if args.data == 'digits' and args.dataset:
        yield '--dataset %s: not read, for digits come with scikit-learn.' % args.dataset
    if args.data_dump_step is not None and not args.data_dump:
        yield '--data-dump-step %s: nothing is dumped without --data-dump.' % args.data_dump_step
    if args.scale_lr and ranks == 1:
        yield '--scale-lr: there is one process, so the rate stays that of --lr.'
    for name in ('join_timeout', 'peer_timeout'):
        if getattr(args, name) is not None and ranks == 1:
            yield '%s: there is one process, which waits for no other.' % spell_flag(name)
