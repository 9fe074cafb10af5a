"""The flags of train_evaluate_sesemi.py in one table, and what becomes of them: parser, defaults, what a
resumed run keeps.
"""
import argparse
from typing import NamedTuple

from sesemi.errors import InputError
from sesemi.settings import FITS, LEARNING_RATE, MAX_WHITENED_SIZE, METHODS, NETWORKS, PRESETS, SPLIT_SEED
from sesemi.system.command_line import SWITCH_OPTIONS, Parser, fraction, positive_number, whole_number

# What --resume does with a flag: IDENTITY: keeps it, for another value makes another run; KEPT: keeps it
# unless it is given anew; ANEW: forgets it.
IDENTITY, KEPT, NOT_KEPT = 'identity', 'kept', 'not kept'


class Flag(NamedTuple):
    """A row of the table. default: None where it depends on other flags or on the data; options: of
    argparse.
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


PRECISION_HELP = (
    'cpu and gpu: float32 (the default) or mixed, which is float16 on a gpu and bfloat16 on a cpu, where the '
    'processor (amx_bf16 or avx512_bf16) and TensorFlow 2 have it; npu: allow_fp32_to_fp16 (the default '
    'there), force_fp16, must_keep_origin_dtype, allow_mix_precision')

TABLE = {
    'data': [
        _flag('data', 'cifar10', IDENTITY, 'data set, which also chooses its preset (default: cifar10)',
              choices=list(PRESETS)),
        _flag('dataset', None, KEPT,
              'its files: train/CLASS/* and test/CLASS/*, or CLASS/*, or list.csv, or the official CIFAR '
              'batches or archive, or the SVHN .mat files (default: dataset/cifar-10, downloaded once)',
              metavar='DIR'),
        _flag('labels', 1000, IDENTITY, 'labeled images in all (default: 1000)', type=_labels,
              metavar='N|all'),
        _flag('validation', None, IDENTITY,
              'take this share of the labeled images, of each class, out of training to measure the error '
              'during it, as 0.1; for data without validation images of its own', type=fraction(0.5),
              metavar='X'),
        _flag('split_seed', SPLIT_SEED, IDENTITY,
              'seed of the choice of labeled images (default: 1, the published split)',
              type=whole_number(0, 2 ** 32 - 1), metavar='N'),
        _flag('image_size', 32, IDENTITY, 'pixels a side, a multiple of 4 from 16 to 128 (default: 32)',
              type=_image_size, metavar='N'),
        _flag('fit', 'stretch', IDENTITY, 'what happens to images that are not square (default: stretch)',
              choices=FITS),
        _flag('whitening', None, IDENTITY,
              'what follows contrast normalisation: ZCA whitening; channel: a mean and a deviation for each '
              'color; or nothing (default: auto: by the number of images for folder, none for svhn and '
              'digits, else zca)',
              choices=['auto', 'zca', 'channel', 'none']),
        _flag('memory_limit', None, KEPT,
              'more images than fit into this are kept in the cache and normalised as they are drawn '
              '(default: half of the memory, shared by the processes of a host)', type=positive_number,
              metavar='GB'),
        _switch('no_cache', NOT_KEPT, 'decode all images and fit the whitening anew'),
        _switch('no_flip', IDENTITY, 'no left-right flips: a mirrored image is not of the same class (always '
                                     'so for svhn and digits)'),
    ],
    'method': [
        _flag('network', 'convnet', IDENTITY, '(default: convnet)', choices=NETWORKS),
        _flag('method', 'asl', IDENTITY,
              'self-supervision on the labeled images, on all training images, or none (default: asl)',
              choices=METHODS),
        _flag('epochs', None, IDENTITY,
              '(default: 300; ssl: 50, on svhn 30; digits: about 75 steps, at least one epoch)',
              type=whole_number(1), metavar='N'),
        _flag('batch_size', None, IDENTITY,
              'images of the self branch a step, six views of each, beside six times as many labeled ones '
              '(default: 16; digits: 4)', type=whole_number(1), metavar='N'),
        _flag('lr', LEARNING_RATE, IDENTITY, 'learning rate of the first step (default: 0.05)',
              type=positive_number, metavar='X'),
        _switch('no_oversample', IDENTITY,
                'draw only as many labeled images a step as self-supervised ones, each augmented six times'),
        _switch('recompute_norm', IDENTITY,
                'evaluate and save with batch-norm statistics measured anew on training batches for the '
                'weights as they are, not with averages that lag behind (default: on for digits and folder)',
                default=None),
        _flag('class_weights', None, IDENTITY,
              'multiply the cross-entropy of a labeled image by a weight, the larger the fewer its class '
              'has, so that all classes count the same', choices=['balanced']),
        _flag('seed', 0, IDENTITY, 'initial weights, batches, dropout (default: 0)',
              type=whole_number(0), metavar='N'),
    ],
    'run': [
        _flag('result', 'result', NOT_KEPT,
              'folder for the model and the record of the run (default: result)', metavar='DIR'),
        _flag('resume', None, NOT_KEPT, 'go on with the run in --result; auto: start it if there is none',
              nargs='?', const='yes', choices=['yes', 'auto']),
        _flag('runs', 1, NOT_KEPT,
              'train N times, with seeds --seed, --seed + 1, ..., each in a folder of its own below --result '
              '(default: 1)', type=whole_number(1), metavar='N'),
        _switch('quiet', NOT_KEPT, 'a line an epoch, no progress line'),
        _switch('verbose', NOT_KEPT, "TensorFlow's own messages too"),
        _flag('eval_every', None, KEPT,
              'evaluate every N epochs, not only at the end: the validation images, without these the test '
              'images (default: 0, not; 1 with validation images, and for ssl)',
              type=whole_number(0), metavar='N'),
        _flag('keep', 'last', IDENTITY,
              'which weights are evaluated on the test images and saved: those of the last epoch, or of the '
              'least validation error (default: last)', choices=['last', 'best']),
        _flag('checkpoint_minutes', 10.0, KEPT, 'longest time between checkpoints (default: 10)',
              type=positive_number, metavar='X'),
    ],
    'device': [
        _flag('device', 'auto', NOT_KEPT, '(default: auto)', choices=['auto', 'cpu', 'gpu', 'npu']),
        _flag('precision_mode', None, KEPT, PRECISION_HELP, metavar='MODE'),
        _switch('profiling', NOT_KEPT, 'trace into RESULT/profiling'),
        _switch('autotune', NOT_KEPT, 'npu: tune the operators (RL, GA)'),
        _switch('over_dump', NOT_KEPT, 'npu: overflow detection into RESULT/over_dump'),
        _switch('data_dump', NOT_KEPT, "npu: operators' inputs and outputs into RESULT/data_dump"),
        _flag('data_dump_step', None, NOT_KEPT, 'which steps, as in 0|5|10-20 (default: 0)', metavar='STEPS'),
    ],
    'several devices': [
        _flag('gpus', None, NOT_KEPT, 'a process for each of these GPUs of this host', type=_gpus,
              metavar='all|N,N'),
        _flag('workers', None, NOT_KEPT,
              'an address for each of the processes that train together, the same list for all (default: of '
              'TF_CONFIG, if that is set)', metavar='HOST:PORT,HOST:PORT'),
        _flag('rank', None, NOT_KEPT, "this process's number among them, from 0; rank 0 writes and prints",
              type=whole_number(0), metavar='N'),
        _flag('join_timeout', None, NOT_KEPT, 'seconds to wait at the start for all to come (default: 1800)',
              type=positive_number, metavar='X'),
        _flag('peer_timeout', None, NOT_KEPT,
              'seconds that all may take for what they compute together, before the run ends '
              '(default: 600)', type=positive_number, metavar='X'),
        _switch('scale_lr', IDENTITY, 'multiply --lr by the number of processes (default: the same rate)'),
    ],
    "older ports' flags": [
        _flag('gpu_id', None, NOT_KEPT, 'the GPU to use, as CUDA_VISIBLE_DEVICES has it', metavar='N'),
        _flag('obs_url', None, NOT_KEPT, 'not used: boot_modelarts.py copies the results', metavar='URL'),
    ],
}
FLAGS = [flag for group in TABLE.values() for flag in group]
DEFAULTS = {flag.name: flag.default for flag in FLAGS}
IDENTITY_FLAGS = {flag.name: flag.default for flag in FLAGS if flag.resumed == IDENTITY}
RESUMED_FLAGS = [flag.name for flag in FLAGS if flag.resumed != NOT_KEPT]


def spell_flag(name):
    """A flag as one types it."""
    return '--' + name.replace('_', '-')


def parse_given(argv):
    """The flags that are given, by name: {name: value}. Raises InputError naming the flag.

    Flags may be spelled with underscores too, as ModelArts and older ports have them.
    """
    argv = [word.split('=')[0].replace('_', '-') + word[len(word.split('=')[0]):] if word.startswith('--')
            else word
            for word in argv]
    parser = Parser(prog='train_evaluate_sesemi.py',
                    description='Train and evaluate SESEMI: image classification from few labels, '
                                'regularised by predicting '
                    'rotations and flips. --flag value and --flag=value are the same.')
    for title, flags in TABLE.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            # no default: what was given must be seen
            group.add_argument(spell_flag(flag.name), help=flag.help, **flag.options)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if given.get('whitening') == 'auto':        # what the run was started with, or the preset's
        del given['whitening']
    return given


def resolve(given, recorded):
    """Every flag as given, else as recorded of the run to be resumed, else as its default or its data set's:
    a dict, with `flip`.

    Raises InputError where flags do not go together.
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
    """A sentence for each flag that was given and does nothing here, for want of what it belongs to."""
    if args.data == 'digits' and args.dataset:
        yield '--dataset %s: not read, for digits come with scikit-learn.' % args.dataset
    if args.data_dump_step is not None and not args.data_dump:
        yield '--data-dump-step %s: nothing is dumped without --data-dump.' % args.data_dump_step
    if args.scale_lr and ranks == 1:
        yield '--scale-lr: there is one process, so the rate stays that of --lr.'
    for name in ('join_timeout', 'peer_timeout'):
        if getattr(args, name) is not None and ranks == 1:
            yield '%s: there is one process, which waits for no other.' % spell_flag(name)
