"""The command line of train_evaluate_sesemi.py."""
import argparse
import glob
import os

from sesemi.data.datasets import default_directory
from sesemi.device import precision
from sesemi.errors import InputError
from sesemi.images.decoding import FITS
from sesemi.record.identity import IDENTITY_FLAGS, tensorflow_version
from sesemi.record.run_folder import stored_record
from sesemi.settings import NETWORKS, PRESETS, WHITENED_SIZE
from sesemi.system.command_line import SWITCH, Parser, positive, share, whole

METHODS = ('asl', 'ssl', 'supervised')

DEFAULTS = dict(
    IDENTITY_FLAGS, dataset=None, result='result', resume=None, runs=1, quiet=False, verbose=False, eval_every=None, checkpoint_minutes=10.0,
    device='auto', precision_mode=None, autotune=False, over_dump=False, data_dump=False, data_dump_step=None, profiling=False, gpu_id=None,
    gpus=None, no_cache=False, memory_limit=None, obs_url=None, workers=None, rank=None, join_timeout=None, peer_timeout=None)
RESUMED_FLAGS = *IDENTITY_FLAGS, 'dataset', 'eval_every', 'checkpoint_minutes', 'memory_limit', 'precision_mode'   # unless given anew


def parse_args(argv):
    """Every flag as given, else as the run to be resumed was started with, else as its default: a Namespace.

    Flags may be spelled with underscores too, as ModelArts and older ports have them. Beside the flags it has `flip`.
    Raises InputError naming the flag.
    """
    argv = [word.split('=')[0].replace('_', '-') + word[len(word.split('=')[0]):] if word.startswith('--') else word
            for word in argv]
    given = {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}
    if given.get('whitening') == 'auto':        # what the run was started with, or the preset's
        del given['whitening']
    args = {**DEFAULTS, **(flags_to_resume(given.get('result', DEFAULTS['result'])) if given.get('resume') else {}), **given}
    if args['over_dump'] and args['data_dump']:
        raise InputError('--over-dump and --data-dump: the adapter does one of them at a time; leave one out.')
    preset = PRESETS[args['data']]
    args['batch_size'] = args['batch_size'] or preset.batch_size
    if args['recompute_norm'] is None:
        args['recompute_norm'] = preset.recompute_norm
    if given.get('no_flip') is False and not preset.flip:
        raise InputError('--no-flip False: a mirrored image of %s is of another class or of none; leave the flag out.' % args['data'])
    args['whitening'] = args['whitening'] or preset.whitening
    if given.get('whitening') == 'zca' and args['image_size'] > WHITENED_SIZE:
        raise InputError('--whitening zca: is for images of at most %d pixels; say channel or none, or lower --image-size.' % WHITENED_SIZE)
    args['flip'] = preset.flip and not args['no_flip']
    if args['gpus'] and 'device' not in given:
        args['device'] = 'gpu'
    try:
        precision.check(precision.known_device(args['device']), args['precision_mode'], tensorflow_version())
    except InputError:
        if 'precision_mode' in given or 'device' not in given:
            raise
        args['precision_mode'] = None       # the run to be resumed was on another device
    return argparse.Namespace(**args)


def flags_to_resume(folder):
    """The flags that the run in a result folder goes on with, or the runs below it that --runs has started; {} if there are none."""
    flags, names = stored_flags(folder), RESUMED_FLAGS
    for path in [] if flags else glob.glob(os.path.join(glob.escape(folder), 'seed-*', 'args.json')):
        found = stored_flags(os.path.dirname(path))
        if not flags or found.get('seed', 0) < flags.get('seed', 0):      # the first run has the lowest
            flags, names = found, (*RESUMED_FLAGS, 'runs')
    default = default_directory(flags.get('data', 'folder')) if flags.get('dataset') else None
    if default and flags['dataset'].endswith(default) and not os.path.exists(flags['dataset']):
        flags['dataset'] = None     # it was where nobody had to say: looked for, or downloaded, anew
    return {name: flags[name] for name in names if name in flags}


def stored_flags(folder):
    """The flags of the run in `folder`, {} if there is none. Raises InputError if one is not known."""
    flags = (stored_record(folder) or {'flags': {}})['flags']
    known = set(DEFAULTS) - {'whitening'}       # run_folder.Run refuses shrunk, of earlier versions
    words = ['--%s=%s' % (name.replace('_', '-'), value) for name, value in flags.items()
             if name in known and value is not None]
    try:
        _parser().parse_args(words)
    except InputError as error:
        raise InputError('%s: begun by another version of this program (%s); finish the run with that one or '
                         'give another --result.'
                         % (os.path.join(folder, 'args.json'), str(error).split('; --help')[0])) from None
    return flags


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
            yield '--%s: there is one process, which waits for no other.' % name.replace('_', '-')


def _parser():
    """The parser. No flag has a default of its own: parse_args must see which ones were given."""
    parser = Parser(prog='train_evaluate_sesemi.py',
                    description='Train and evaluate SESEMI: image classification from few labels, regularised by predicting '
                    'rotations and flips. --flag value and --flag=value are the same.')
    for title, add_flags in (
            ('data', _data_flags),
            ('method', _method_flags),
            ('run', _run_flags),
            ('device', _device_flags),
            ('several devices', _several_flags),
            ("older ports' flags", _older_flags)):
        add_flags(parser.add_argument_group(title))
    return parser


def _data_flags(group):
    group.add_argument('--data', choices=list(PRESETS), help='data set, which also chooses its preset (default: cifar10)')
    group.add_argument('--dataset', metavar='DIR', help='its files: train/CLASS/* and test/CLASS/*, or CLASS/*, or list.csv, or the official '
                       'CIFAR batches or archive, or the SVHN .mat files (default: dataset/cifar-10, downloaded once)')
    group.add_argument('--labels', type=_labels, metavar='N|all', help='labeled images in all (default: 1000)')
    group.add_argument('--validation', type=share(0.5), metavar='X', help='take this share of the labeled images, of each class, out of '
                       'training to measure the error during it, as 0.1; for data without validation images of its own')
    group.add_argument('--split-seed', type=whole(0, 2 ** 32 - 1), metavar='N', help='seed of the choice of labeled images (default: 1, the '
                       'published split)')
    group.add_argument('--image-size', type=_image_size, metavar='N', help='pixels a side, a multiple of 4 from 16 to 128 '
                       '(default: 32)')
    group.add_argument('--fit', choices=list(FITS), help='what happens to images that are not square (default: stretch)')
    group.add_argument('--whitening', choices=['auto', 'zca', 'channel', 'none'], help='what follows contrast normalisation: ZCA '
                       'whitening; channel: a mean and a deviation for each color; or nothing (default: auto: by the number of '
                       'images for folder, none for svhn and digits, else zca)')
    group.add_argument('--memory-limit', type=positive, metavar='GB', help='more images than fit into this are kept in the cache and '
                       'normalised as they are drawn (default: half of the memory, shared by the processes of a host)')
    group.add_argument('--no-cache', **SWITCH, help='decode all images and fit the whitening anew')
    group.add_argument('--no-flip', **SWITCH, help='no left-right flips: a mirrored image is not of the same class (always so for svhn and digits)')


def _method_flags(group):
    group.add_argument('--network', choices=NETWORKS, help='(default: convnet)')
    group.add_argument('--method', choices=METHODS, help='self-supervision on the labeled images, on all training images, or '
                       'none (default: asl)')
    group.add_argument('--epochs', type=whole(1), metavar='N', help='(default: 300; ssl: 50, on svhn 30; digits: about 75 steps, at least one epoch)')
    group.add_argument('--batch-size', type=whole(1), metavar='N', help='images of the self branch a step, six views of each, '
                       'beside six times as many labeled ones (default: 16; digits: 4)')
    group.add_argument('--lr', type=positive, metavar='X', help='learning rate of the first step (default: 0.05)')
    group.add_argument('--no-oversample', **SWITCH, help='draw only as many labeled images a step as self-supervised ones, each augmented '
                       'six times')
    group.add_argument('--recompute-norm', **SWITCH, help='evaluate and save with batch-norm statistics measured anew on training '
                       'batches for the weights as they are, not with averages that lag behind (default: on for digits and folder)')
    group.add_argument('--class-weights', choices=['balanced'], help='multiply the cross-entropy of a labeled image by a weight, the '
                       'larger the fewer its class has, so that all classes count the same')
    group.add_argument('--seed', type=whole(0), metavar='N', help='initial weights, batches, dropout (default: 0)')


def _run_flags(group):
    group.add_argument('--result', metavar='DIR', help='folder for the model and the record of the run (default: result)')
    group.add_argument('--resume', nargs='?', const='yes', choices=['yes', 'auto'], help='go on with the run in --result; auto: '
                       'start it if there is none')
    group.add_argument('--runs', type=whole(1), metavar='N', help='train N times, with seeds --seed, --seed + 1, ..., each in a '
                       'folder of its own below --result (default: 1)')
    group.add_argument('--quiet', **SWITCH, help='a line an epoch, no progress line')
    group.add_argument('--verbose', **SWITCH, help="TensorFlow's own messages too")
    group.add_argument('--eval-every', type=whole(0), metavar='N', help='evaluate every N epochs, not only at the end: the validation '
                       'images, without these the test images (default: 0, not; 1 with validation images, and for ssl)')
    group.add_argument('--keep', choices=['last', 'best'], help='which weights are evaluated on the test images and saved: those of the '
                       'last epoch, or of the least validation error (default: last)')
    group.add_argument('--checkpoint-minutes', type=positive, metavar='X', help='longest time between checkpoints (default: 10)')


def _device_flags(group):
    group.add_argument('--device', choices=['auto', 'cpu', 'gpu', 'npu'], help='(default: auto)')
    group.add_argument('--precision-mode', metavar='MODE', help=precision.HELP)
    group.add_argument('--profiling', **SWITCH, help='trace into RESULT/profiling')
    group.add_argument('--autotune', **SWITCH, help='npu: tune the operators (RL, GA)')
    group.add_argument('--over-dump', **SWITCH, help='npu: overflow detection into RESULT/over_dump')
    group.add_argument('--data-dump', **SWITCH, help="npu: operators' inputs and outputs into RESULT/data_dump")
    group.add_argument('--data-dump-step', metavar='STEPS', help='which steps, as in 0|5|10-20 (default: 0)')


def _several_flags(group):
    group.add_argument('--gpus', type=_gpus, metavar='all|N,N', help='a process for each of these GPUs of this host')
    group.add_argument('--workers', metavar='HOST:PORT,HOST:PORT', help='an address for each of the processes that train together, '
                       'the same list for all (default: of TF_CONFIG, if that is set)')
    group.add_argument('--rank', type=whole(0), metavar='N', help="this process's number among them, from 0; rank 0 writes and prints")
    group.add_argument('--join-timeout', type=positive, metavar='X', help='seconds to wait at the start for all to come (default: 1800)')
    group.add_argument('--peer-timeout', type=positive, metavar='X', help='seconds that all may take for what they compute together, before the '
                       'run ends (default: 600)')
    group.add_argument('--scale-lr', **SWITCH, help='multiply --lr by the number of processes (default: the same rate)')


def _older_flags(group):
    group.add_argument('--gpu-id', metavar='N', help='the GPU to use, as CUDA_VISIBLE_DEVICES has it')
    group.add_argument('--obs-url', metavar='URL', help='not used: boot_modelarts.py copies the results')


def _image_size(text):
    if text not in map(str, range(16, 129, 4)):
        raise argparse.ArgumentTypeError('%s is not a multiple of 4 from 16 to 128' % text)
    return int(text)


def _labels(text):
    return text if text == 'all' else whole(1)(text)


def _gpus(text):
    if text != 'all' and not all(map(str.isdecimal, text.split(','))):
        raise argparse.ArgumentTypeError('%s is neither all nor a list of numbers, as in 0,1' % text)
    return text
