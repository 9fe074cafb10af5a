"""Export a saved classifier to where models run: a frozen TensorFlow graph (.pb) or ONNX (.onnx).

    python export.py result/sesemi.h5 sesemi.onnx
    python export.py result/sesemi.h5 sesemi.pb --batch 10000

The ONNX graph takes any number of images of values 0-255. The frozen graph is for atc, the compiler for the
Ascend 310. It has constants instead of variables, one batch size and no learning phase. It takes images that
are contrast normalised and whitened already, because atc computes in float16, where normalising values 0-255
overflows. --from-images freezes the complete graph instead, for TensorFlow on CPUs and GPUs.

--bins writes the views of the run's test images to files that msame, which runs the compiled graph, reads.
--score reads msame's outputs; its last line is `classification error rate: 0.xxxx`, as in result.json. Exit
status 2: wrong input.
"""
import importlib.util
import json
import logging
import math
import os
import shlex
import sys
from collections import defaultdict
from pathlib import Path

if __name__ == '__main__':
    from sesemi.system import command_line, signals
    command_line.keep_docstrings()
    command_line.report_import_errors()
    signals.watch()     # before the slow imports, so that a signal during them is handled too

import numpy as np

from sesemi.data.batches import make_test_views
from sesemi.data.checksum import data_checksum
from sesemi.data.datasets import load_dataset
from sesemi.errors import InputError
from sesemi.record import run_folder
from sesemi.system import files
from sesemi.system.command_line import Parser, report_run_errors, whole_number
from sesemi.training import metrics, model_file
from utils import chunks

BATCH = 100
ONNX = '.onnx'
LABELS, MANIFEST, VIEWS = 'labels.bin', 'manifest.json', 'views'     # in the folder of --bins


def export(args):
    """Write the graph and, with args.bins, the test images' views. Raises InputError."""
    metadata = model_file.read_metadata(args.model)
    if args.path.endswith(ONNX) and not importlib.util.find_spec('tf2onnx'):
        raise InputError('%s: ONNX needs the package tf2onnx: pip install tf2onnx.' % args.path)
    flags, dataset = read_run(args.model, args.dataset) if args.bins else (None, None)

    # imported late: these load TensorFlow, and wrong input is reported before that
    from sesemi.device.backend import keras
    from sesemi.device.runtime import open_session
    from sesemi.training import classifier
    with open_session('cpu'):
        # set before the layers are made, which would otherwise add Switch and Merge nodes for both phases
        keras.backend.set_learning_phase(0)
        model = classifier.load_classifier(args.model)
        whitened = model.get_layer('whitened').output
        start, name = (model.input, 'images') if args.from_images else (whitened, 'super_data')
        graph = freeze(model, start, name, args.batch)
        output = model.output.op.name
        if args.path.endswith(ONNX):
            content = convert_to_onnx(graph, name, output, metadata['class_names'])
        else:
            content = graph.SerializeToString()
        files.write_atomic(args.path, content)
        shape = [args.batch or 'n'] + [int(side) for side in start.shape[1:]]
        print('%s: %s float32 %s -> %s float32 %s' % (
            args.path, name, describe_shape(shape), output,
            describe_shape([shape[0], len(metadata['class_names'])])))
        if args.from_images and args.batch:
            print('It takes values 0-255 and is for TensorFlow on CPUs and GPUs. It is not for atc, whose '
                  'float16 overflows in the contrast normalisation; for atc leave --from-images out.')
        if args.from_images:
            return
        base = os.path.splitext(args.path)[0]
        print('atc --model=%s --framework=3 --output=%s --soc_version=Ascend310 --input_shape="%s:%s"' % (
            shlex.quote(args.path), shlex.quote(base), name, ','.join(map(str, shape))))
        if args.bins:
            write_bins(args.bins, keras.Model(model.input, whitened), dataset, flags['seed'], flags['flip'],
                       args.batch)
            print('./msame --model %s --input %s --output outputs --outfmt BIN' % (
                shlex.quote(base + '.om'), shlex.quote(os.path.join(args.bins, VIEWS))))
            print('python export.py --score %s outputs' % shlex.quote(args.bins))


def describe_shape(shape):
    """A shape in words: '[n, 32, 32, 3]'."""
    return '[%s]' % ', '.join(map(str, shape))


def convert_to_onnx(graph, name, output, class_names):
    """An ONNX model, as bytes, of a GraphDef with the input `name` and the output `output`.

    Its metadata holds `class_names`, a JSON list in the order of the probabilities.
    """
    from tf2onnx.convert import from_graph_def
    logging.disable(logging.WARNING)        # tf2onnx logs each of its steps
    tensors = {'%s:0' % tensor: tensor for tensor in (name, output)}
    model, _ = from_graph_def(graph, 'sesemi', ['%s:0' % name], ['%s:0' % output], tensors_to_rename=tensors)
    model.metadata_props.add(key='class_names', value=json.dumps(class_names))
    return model.SerializeToString()


def freeze(model, start, name, batch):
    """Freeze the part of `model` from the tensor `start` to its output into a GraphDef of constants.

    A placeholder called `name`, float32 (batch, s, s, 3), replaces `start`; batch None: any number. The model
    must have been made in learning phase 0 and in the current Keras session.
    """
    from sesemi.device.backend import keras, tf
    output = [model.output.op.name]
    definition = start.graph.as_graph_def()
    frozen = tf.graph_util.convert_variables_to_constants(keras.backend.get_session(), definition, output)
    with tf.Graph().as_default() as graph:
        placeholder = tf.placeholder(tf.float32, [batch] + start.shape.as_list()[1:], name=name)
        tf.import_graph_def(frozen, {start.name: placeholder}, name='')
    part = tf.graph_util.extract_sub_graph(graph.as_graph_def(), output)
    # leave out attributes at their default: TensorFlow 1.15, and so atc, does not know some of TensorFlow 2's
    return tf.train.export_meta_graph(graph_def=part, strip_default_attrs=True).graph_def


# The test images' views and their score

def read_run(model_path, directory):
    """The flags and the data of the run that saved the model: (flags, Dataset).

    directory: where the data is now; None: where the run found it. Raises InputError when the record of the
    run is not beside the model, or the images are not those of the run.
    """
    folder = os.path.dirname(model_path)
    stored = run_folder.stored_record(folder)
    if stored is None:
        raise InputError('%s: not there, and --bins takes the data, seed and flips of the run from it; give '
                         'the sesemi.h5 in its result folder.' % os.path.join(folder, 'args.json'))
    flags = stored['flags']
    dataset = load_dataset(flags['data'], directory or flags['dataset'], flags['image_size'], flags['fit'],
                           with_unlabeled=flags['method'] == 'ssl')
    if data_checksum(dataset) != stored['data_checksum']:
        raise InputError('--bins: the images found are not those of the run that left %s; give these by '
                         '--dataset.' % model_path)
    return flags, dataset


def write_bins(folder, normalise, dataset, seed, flip, batch):
    """Write the views of the test images, the labels and the manifest to a folder.

    The views are those of evaluation.DenseEvaluator: float32 NHWC, a file for each batch and view, zeros at
    the end of the last batch. They have a folder of their own, because msame reads every file in it. The
    labels, int32 (images,), and the manifest are beside it; the manifest is written last. normalise: a Keras
    model from values 0-255 to the input of the frozen graph. Raises InputError if a folder cannot be made.
    """
    try:
        os.makedirs(os.path.join(folder, VIEWS), exist_ok=True)
    except OSError as error:
        raise InputError('--bins %s: cannot be made (%s); give another folder.'
                         % (folder, error.strerror)) from None
    for first in range(0, len(dataset.test_images), batch):
        parts = chunks(dataset.test_images[first:first + batch])
        images = np.concatenate([normalise.predict_on_batch(part.astype(np.float32)) for part in parts])
        padding = [(0, batch - len(images))] + [(0, 0)] * 3
        for number, view in enumerate(make_test_views(images, first, seed, flip)):
            files.write_atomic(os.path.join(folder, VIEWS, view_name(first // batch, number) + '.bin'),
                                   np.pad(view, padding, mode='constant').astype('<f4', copy=False).tobytes())
    files.write_atomic(os.path.join(folder, LABELS), dataset.test_labels.astype('<i4').tobytes())
    files.write_json(os.path.join(folder, MANIFEST), {
        'batch': batch, 'images': len(dataset.test_images), 'views': number + 1,
        'classes': len(dataset.class_names),
        'view_dtype': 'float32', 'label_dtype': 'int32'})


def view_name(batch, view):
    """The file name, without .bin, of one view of one batch; msame names its output after it."""
    return 'batch_%04d_view_%d' % (batch, view)


def score(bins, outputs):
    """The error rate of msame's outputs, softmax probabilities that are averaged over the views of an image.

    bins: the folder of --bins; outputs: msame's. Raises InputError.
    """
    manifest, labels = read_manifest(bins)
    found = defaultdict(list)
    for path in sorted(Path(outputs).rglob('*_0.bin')):     # msame makes a folder named after the time
        found[path.name.replace('_output', '')].append(path)        # older versions of msame omit `_output`
    shape = manifest['batch'], manifest['classes']
    dense = []
    for batch in range(math.ceil(len(labels) / manifest['batch'])):
        names = [view_name(batch, view) for view in range(manifest['views'])]
        views = [read_output(outputs, found[name + '_0.bin'], name, shape) for name in names]
        dense.append(np.mean(views, axis=0))
    return metrics.error_rate(np.concatenate(dense)[:len(labels)], labels)


def read_manifest(folder):
    """Read what --bins wrote beside the views: (manifest, labels int32 (images,)).

    Raises InputError when a file is missing or damaged.
    """
    try:
        with open(os.path.join(folder, MANIFEST)) as file:
            manifest = json.load(file)
        labels = np.fromfile(os.path.join(folder, LABELS), '<i4')
        if len(labels) != manifest['images']:
            raise ValueError('%s and %s do not fit' % (MANIFEST, LABELS))
    except (OSError, ValueError) as error:
        raise InputError('--score %s: not a complete folder written by --bins (%s); write it again.'
                         % (folder, error)) from None
    return manifest, labels


def read_output(outputs, paths, name, shape):
    """Read msame's output for the views `name`: float32 of `shape`, (batch, classes).

    paths: the output files found under that name, which should be one. Raises InputError.
    """
    if len(paths) != 1:
        problem = 'holds %s and %s' % tuple(paths[:2]) if paths else 'there is no %s_output_0.bin' % name
        raise InputError('%s: %s; give the folder of one run of msame, with --outfmt BIN, over all the views.'
                         % (outputs, problem))
    probabilities = np.fromfile(str(paths[0]), '<f4')
    if probabilities.size != shape[0] * shape[1] or not np.isfinite(probabilities).all():
        raise InputError('%s: does not hold finite float32 values of shape %s; convert the .pb that was made '
                         'with these views, as that of --from-images overflows in float16, and run msame '
                         'with --outfmt BIN.' % (paths[0], shape))
    return probabilities.reshape(shape)


# Flags

def parse_args(argv):
    """The flags as a Namespace. Raises InputError."""
    parser = Parser(prog='export.py',
                    description='Export a saved classifier as ONNX or as a frozen TensorFlow graph.')
    parser.add_argument('model', metavar='MODEL', nargs='?', help='the sesemi.h5 of a result folder')
    parser.add_argument('path', metavar='OUT', nargs='?',
                        help='the file to write: OUT.onnx, or OUT.pb, a frozen graph')
    parser.add_argument('--batch', type=whole_number(1), metavar='N',
                        help='.pb: number of images in a batch (default: %d)' % BATCH)
    parser.add_argument('--from-images', action='store_true',
                        help='.pb: a graph that takes values 0-255, for CPUs and GPUs, not for atc')
    parser.add_argument('--bins', metavar='DIR',
                        help=".pb: also write the views of the run's test images for msame to a new folder")
    parser.add_argument('--dataset', metavar='DIR',
                        help='for --bins: the data of the run, if it is not where the run found it')
    parser.add_argument('--score', nargs=2, metavar=('BINS', 'OUTPUTS'),
                        help="export nothing, but print the error rate of msame's outputs in OUTPUTS "
                        'for the folder BINS that --bins wrote')
    args = parser.parse_intermixed_args(argv)
    if args.score:
        if any(value for name, value in vars(args).items() if name != 'score'):
            parser.error('--score BINS OUTPUTS takes no other arguments; leave them out')
        return args
    if not args.path:
        parser.error('give MODEL and OUT, or --score BINS OUTPUTS')
    if args.path.endswith(ONNX):
        if args.batch or args.from_images or args.bins or args.dataset:
            parser.error('%s: --batch, --from-images, --bins and --dataset are for a .pb; leave them out'
                         % args.path)
        args.from_images = True
    elif args.path.endswith('.pb'):
        args.batch = BATCH if args.batch is None else args.batch
    else:
        parser.error('%s: the file must end in .onnx or .pb' % args.path)
    if args.dataset and not args.bins:
        parser.error('--dataset is read for --bins DIR only; add that or leave it out')
    if args.from_images and args.bins:
        parser.error('--bins writes whitened views, which the graph of --from-images does not take; leave '
                     'one out')
    files.check_writable(args.path, args.path)
    if args.bins and os.path.exists(args.bins) and (not os.path.isdir(args.bins) or os.listdir(args.bins)):
        raise InputError('--bins %s: is there already; give a folder that is new or empty.' % args.bins)
    return args


@report_run_errors
def main(argv):
    """Run the program; returns its exit status."""
    args = parse_args(argv)
    if args.score:
        print('classification error rate: %.4f' % score(*args.score))
    else:
        export(args)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
