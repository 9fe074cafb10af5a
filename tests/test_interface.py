"""The interface for users and other programs, a line of a table for each part. None of it may change.

PROVED names the tests in other files that prove the rest; here they are only looked up.
"""
import ast
import csv
import importlib
import inspect
import json
import os
import re

import make_fixture
import pytest
from conftest import PROJECT

import train_evaluate_sesemi
import utils
from sesemi.data import batches

# Flags, and their choices if they are a list. [True|False]: a switch that may have a value.
FLAGS = {
    'train_evaluate_sesemi.py': '''
        --data {cifar10,cifar100,svhn,digits,folder}
        --dataset
        --labels
        --validation
        --split-seed
        --image-size
        --fit {stretch,crop,pad}
        --whitening {auto,zca,channel,none}
        --memory-limit
        --no-cache [True|False]
        --no-flip [True|False]
        --network {convnet,nin,wrn}
        --init
        --method {asl,ssl,supervised}
        --epochs
        --batch-size
        --lr
        --no-oversample [True|False]
        --recompute-norm [True|False]
        --class-weights {balanced}
        --seed
        --result
        --resume [{yes,auto}]
        --runs
        --quiet [True|False]
        --verbose [True|False]
        --eval-every
        --keep {last,best}
        --checkpoint-minutes
        --device {auto,cpu,gpu,npu}
        --precision-mode
        --profiling [True|False]
        --autotune [True|False]
        --over-dump [True|False]
        --data-dump [True|False]
        --data-dump-step
        --gpus
        --workers
        --rank
        --join-timeout
        --peer-timeout
        --scale-lr [True|False]
        --gpu-id
        --obs-url''',
    'predict.py': '''
        --top
        --threshold
        --csv
        --html
        --per-class
        --sort-into
        --copy
        --evaluate
        --device {auto,cpu,gpu,npu}
        --precision-mode''',
    'export.py': '''
        --batch
        --from-images
        --bins
        --dataset
        --score''',
    'report.py compare': '''
        --plot''',
    'boot_modelarts.py': '''
        --data_url
        --train_url''',
}

# The files of a run in --result, without pictures, which need matplotlib, and hidden files.
FILES = 'args.json checkpoints events.out.tfevents labeled.csv log.csv report.html result.json sesemi.h5'
ARGS = 'command flags device data_checksum format'
RESULT = '''
    classification_error_rate error_rate_interval classification_error_rate_1_view balanced_error_rate
    per_class_error_rate confusion_matrix labeled_error_rate validation_error_rate saved_epoch
    steps images_per_step seconds_per_step images_per_second seconds versions git_revision
    command flags device data_checksum format precision_mode'''
LABELED = 'index file class split'
# With validation images `validation_error` stands in place of `error`: test_fixture.py.
LOG = 'epoch step learning_rate loss self_clf_loss super_clf_loss self_clf_acc super_clf_acc seconds error'

# Lines of standard output that programs read: the last of a run, the last of several runs, one of each run.
ERROR = r'classification error rate: [01]\.\d{4}'
ERROR_OF_RUNS = r'classification error rate: [01]\.\d{4} \+/- \d\.\d{4} \(\d+ runs\)'
ERROR_OF_EACH = r'Seed (\d+): error rate [01]\.\d{4}, in (.+)\.'

PROVED = '''
The pictures of a run:
    test_report.py test_finished_run
runs.png of several runs:
    test_train_evaluate.py test_several_runs_are_one_result_and_are_not_run_again
The line of predict.py --evaluate:
    test_predict.py test_evaluation_of_some_of_the_classes_equals_the_hand_computation
The line of export.py --score:
    test_export.py test_the_score_is_the_error_rate_of_the_run
The lines and files of the model zoo's scripts:
    test_zoo_scripts.py test_numbers
The columns of predict.py --csv:
    test_predict.py test_csv_of_several_batches_equals_one_by_one_and_lists_the_unreadable
The page of predict.py --html and the folders of --sort-into:
    test_predict.py test_page_and_folders_of_images_by_class
The files of export.py --bins:
    test_export.py test_the_bins_hold_the_views_of_the_evaluation_in_training
sesemi.h5 opens in plain Keras:
    test_train_evaluate.py test_the_saved_model_needs_nothing_of_the_project
A killed run goes on to the same weights:
    test_train_evaluate.py test_a_run_killed_at_random_and_resumed_ends_as_one_left_alone
Equal runs are equal to the bit:
    test_train_evaluate.py test_one_seed_gives_one_model_and_a_finished_run_is_kept
A run that an earlier version began goes on:
    test_fixture.py test_a_stopped_run_ends_as_it_did_uninterrupted
Exit status 0:
    test_train_evaluate.py test_a_run_prints_its_error_and_leaves_its_record
Exit status 1, a rank was lost:
    test_ranks.py test_a_lost_rank_ends_the_other_and_the_run_can_be_resumed
Exit status 1, predict.py could not read an image:
    test_predict.py test_csv_of_several_batches_equals_one_by_one_and_lists_the_unreadable
Exit status 1, a script of the model zoo without data:
    test_zoo_scripts.py test_data_path_is_mandatory
Exit status 2, wrong input:
    test_wrong_input.py test_flags
Exit status 2, wrong input of predict.py:
    test_predict.py test_wrong_input_ends_in_one_sentence_before_tensorflow_is_imported
Exit status 2, wrong input of export.py:
    test_export.py test_wrong_input_ends_in_one_sentence_before_tensorflow_is_imported
Exit status 2, wrong input of report.py:
    test_report.py test_a_wrong_command_is_one_sentence
Exit status 2, wrong input of boot_modelarts.py:
    test_boot_modelarts.py test_wrong_arguments
Exit status 2, a Python without the packages:
    test_wrong_input.py test_an_interpreter_without_a_package
Exit status 2, no Python for run_1p.sh:
    test_run_1p.py test_nothing_to_set_up_with
Exit status 3, training diverged:
    test_train_evaluate.py test_divergence_ends_with_status_3
Exit status 130, 143, 138 and 152, by Ctrl-C, SIGTERM, SIGUSR1 and SIGXCPU in training:
    test_train_evaluate.py test_a_signal_saves_and_says_so
Exit status 130, 143, 129, 138 and 152, by Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGXCPU before it:
    test_ends.py test_a_signal_before_the_training_ends_the_program_in_one_sentence
Exit status 143, by SIGTERM to several ranks:
    test_ranks.py test_a_signal_to_run_local_saves_and_ends_both_ranks
Exit status 138 and 152, by SIGUSR1 and SIGXCPU to several ranks:
    test_ranks.py test_notices_reach_the_ranks_and_their_repeats_end_none
run_1p.sh has the exit status of the training:
    test_run_1p.py test_flags_and_exit_status_go_through
boot_modelarts.py has the exit status of the training:
    test_boot_modelarts.py test_failed_training_leaves_its_log_and_its_status
'''

# Names that other programs call, with their parameters. Optional ones may be added behind these.
NAMES = [
    (utils.list_image_folder, '(directory, passed_over=None, least=2)'),
    (utils.load_image_folder, '(directory, image_size=32)'),
    (utils.global_contrast_normalize, '(images, scale=55, eps=1e-10)'),
    (utils.zca_whitener, '(images, identity_scale=0.1, eps=1e-10)'),
    (utils.stratified_sample, '(labels, labels_per_class, seed=1, class_names=None)'),
    (batches.TwoBranchBatches, '(labeled_images, labels_one_hot, unlabeled_images, batch_size=16, flip=True, '
                               'seed=0, rank=0, ranks=1, oversample=True)'),
    (train_evaluate_sesemi.parse_args, '(argv)'),
    (train_evaluate_sesemi.train_and_evaluate, '(args)'),
]


def flags_in(table):
    return [line.strip() for line in table.strip().splitlines()]


@pytest.mark.parametrize('program', FLAGS)
def test_the_flags_of_each_program(program, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '1000')
    file, *words = program.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(file[:-len('.py')]).main([*words, '--help'])
    assert ended.value.code == 0
    flag = re.compile(r'^  (--[\w-]+(?: \[?\{.*?\}\]?| \[True\|False\])?)', re.MULTILINE)
    assert sorted(flag.findall(capsys.readouterr().out)) == sorted(flags_in(FLAGS[program]))


def test_a_run_leaves_these_files_and_lines(train, tmp_path):
    make_fixture.write_images(str(tmp_path / 'images'))
    result = tmp_path / 'result'
    flags = ('--data=folder', '--dataset', tmp_path / 'images', '--image-size=16', '--network=nin',
             '--batch-size=4', '--labels=24', '--method=ssl', '--epochs=1', '--device=cpu', '--quiet',
             '--runs=2', '--seed=3')
    lines = train(*flags, '--result', result).out.splitlines()
    assert re.fullmatch(ERROR_OF_RUNS, lines[-1])
    each = [found.groups() for found in (re.fullmatch(ERROR_OF_EACH, line) for line in lines) if found]
    assert each == [('3', str(result / 'seed-3')), ('4', str(result / 'seed-4'))]
    run = result / 'seed-3'
    assert re.fullmatch(ERROR, train('--result', run, '--resume').out.splitlines()[-1])

    left = [re.sub(r'^(events\.out\.tfevents).*', r'\1', name) for name in os.listdir(str(run))]
    assert {name for name in left if not name.startswith('.')} == set(FILES.split())
    assert os.listdir(str(run / 'checkpoints')) == ['step-000000010.npz']
    for name, keys in ('args.json', ARGS), ('result.json', RESULT):
        assert set(json.loads((run / name).read_text())) == set(keys.split())
    for name, columns in ('labeled.csv', LABELED), ('log.csv', LOG):
        with open(str(run / name), newline='') as file:
            assert next(csv.reader(file)) == columns.split()


@pytest.mark.parametrize('file, name', re.findall(r'^    (\S+) (\S+)$', PROVED, re.MULTILINE))
def test_the_tests_that_prove_the_rest_are_there(file, name):
    tree = ast.parse((PROJECT / 'tests' / file).read_text(encoding='utf-8'))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def takes(function, parameters):
    """Whether a function takes these parameters, and behind them only optional ones."""
    return re.fullmatch(re.escape(parameters[:-1]) + r'(, \w+=.*)?\)', str(inspect.signature(function)))


@pytest.mark.parametrize('function, parameters', NAMES, ids=lambda value: getattr(value, '__name__', ''))
def test_public_names_keep_their_parameters(function, parameters):
    assert takes(function, parameters)


def test_public_names_that_import_tensorflow_keep_their_parameters():
    import tiny_trunk  # noqa: F401

    import networks
    from sesemi.device import runtime
    from sesemi.training import training
    assert takes(networks.build_sesemi, '(network, input_shape, num_classes, in_network_dropout=0.0, '
                                        'super_dropout=0.2, seed=0)')
    assert takes(training.training_function, '(model, optimizer, class_weights=None)')
    with runtime.open_session('cpu'):
        model, _ = networks.build_supervised('tiny', (16, 16, 3), 2)
        train_step = training.training_function(model, runtime.optimizer('cpu', 0.1, 0.9))
    assert takes(train_step, '(inputs, targets)')


def test_the_fields_of_whiteners_and_flags():
    assert utils.Whitener._fields == ('mean', 'matrix')
    flags = re.findall(r'--([\w-]+)', FLAGS['train_evaluate_sesemi.py'])
    names = {flag.replace('-', '_') for flag in flags}
    assert set(vars(train_evaluate_sesemi.parse_args([]))) == names | {'flip'}
