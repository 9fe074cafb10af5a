#!/usr/bin/env bash
# Sourced by train_full_1p.sh and train_performance_1p.sh: trains with run_1p.sh, then reads the record of the
# run and prints its numbers as the model zoo has them. Arguments: acc or perf, then the options. The output
# is written beside the script that was started.
set -eu
tests=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
variant=$1
shift

# Prints to standard output, as the model zoo's own scripts do.
error() {
    printf '[Error] %s\n' "$1"
    exit "${2:-1}"
}

usage() {
    cat <<'END'
Usage: bash train_full_1p.sh --data_path=DIR [--name=value ...]          trains in full: 300 epochs
       bash train_performance_1p.sh --data_path=DIR [--name=value ...]   trains 3 epochs;
                                                                         --epochs=N changes that

Both train the convnet on CIFAR-10, 1000 labels, batch size 16, on one device; ASCEND_DEVICE_ID chooses it
(default: 0).

--data_path=DIR         the data: DIR or DIR/cifar-10-batches-py holds the official batches
--precision_mode=MODE   on an NPU force_fp32, force_fp16, cube_fp16in_fp32out, must_keep_origin_dtype,
                        allow_fp32_to_fp16, allow_mix_precision, allow_mix_precision_fp16,
                        allow_mix_precision_bf16 or allow_fp32_to_bf16; without it the platform decides
--over_dump=True        overflow detection
--data_dump_flag=True   dump of the operators' inputs and outputs
--data_dump_step=STEPS  which steps to dump, as in 0|5|10-20
--profiling=True        record a trace
--train_epochs=N        the same as --epochs=N
--ckpt_path=DIR, --output_path=DIR, --train_steps=N, --bind_core=N, --conda_name=NAME, --more_path1=DIR
                        not used: the result is written below output/
--NAME=VALUE            any other flag of train_evaluate_sesemi.py, such as --data=digits --network=nin
                        --device=cpu

Results are written to output/$ASCEND_DEVICE_ID beside these scripts. images/sec (ActualFPS) counts the images
of both branches; TrainingTime is milliseconds a step. Both are means over all epochs except the first, in
which the graph is compiled; if there is only one epoch, they are of that one. Train Accuracy is 1 -
classification error rate on the test images.
END
}

export RANK_SIZE=1 RANK_ID=0 JOB_ID=10087 ASCEND_DEVICE_ID="${ASCEND_DEVICE_ID:-0}"
# The adapter refuses RANK_SIZE beside CM_WORKER_SIZE.
if [[ ${CM_WORKER_SIZE:-} ]]; then unset RANK_SIZE; fi
output=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)/output/$ASCEND_DEVICE_ID
log=$output/train_$ASCEND_DEVICE_ID.log
result=$output/result_$variant

data_path='' unused=''
flags=("--result=$result")
for option; do
    case $option in
        -h | --help) usage && exit ;;
        --data_path=*) data_path=${option#*=} ;;
        --train_epochs=*) flags+=("--epochs=${option#*=}") ;;
        --ckpt_path=* | --output_path=* | --train_steps=* | --bind_core=* | --conda_name=* | --more_path1=*)
            unused+=" ${option%%=*}" ;;
        --data_dump_flag=*) flags+=("--data_dump=${option#*=}") ;;
        --result=* | --resume=*)
            error "${option%%=*}: each start is a new training in $result; leave the option out" ;;
        --*=*) flags+=("$option") ;;
        *) error "$option: not of the form --name=value; -h lists the options" ;;
    esac
done
[[ $data_path ]] || error 'para "data_path" must be config'

source "$tests/../scripts/setup_env.sh"     # sets $python
mkdir -p "$output"
in_use=$(PYTHONPATH=$tests/.. "$python" -c '
import os
import shutil
import sys
from sesemi import errors
from sesemi.record import lock

try:
    if os.path.isdir(sys.argv[1]):
        run_lock = lock.lock(sys.argv[1])
        shutil.rmtree(sys.argv[1])
except errors.InputError as error:
    print(error)
' "$result")
[[ ! $in_use ]] || error "$in_use"
rm -rf "$output"/*_1p_"$variant".log "$output"/train_*_1p_"$variant"_loss.txt
if [[ $unused ]]; then printf 'Not used:%s; the result is left in %s.\n' "$unused" "$result"; fi

status=0
# The braces and 2>/dev/null hide bash's own message about a killed training.
{ bash "$tests/../run_1p.sh" "--dataset=$data_path" "${flags[@]}" >"$log" 2>&1; } 2>/dev/null || status=$?
if [[ $status != 0 ]]; then
    last_line=$(tail -n 1 "$log") || true
    error "the training failed with status $status; its last line: '$last_line'; its complete output: $log" \
        "$status"
fi

"$python" - "$variant" "$output" "$result" "$SECONDS" <<'END'
import csv
import json
import math
import os
import platform
import sys

variant, output, result, seconds = sys.argv[1:]
try:
    with open(os.path.join(result, 'result.json')) as file:
        run = json.load(file)
    with open(os.path.join(result, 'log.csv')) as file:
        epochs = [{name: float(row[name]) for name in ('step', 'seconds', 'loss')}
                  for row in csv.DictReader(file)]
    timed = epochs[1:] or epochs
    steps = epochs[-1]['step'] - (epochs[0]['step'] if epochs[1:] else 0)
    step_seconds = sum(epoch['seconds'] for epoch in timed) / steps
    images_per_second = run['images_per_step'] / step_seconds
    accuracy = 1 - run['classification_error_rate']
    network, batch_size = run['flags']['network'], run['flags']['batch_size']
    if not all(map(math.isfinite, [images_per_second, accuracy] + [epoch['loss'] for epoch in epochs])):
        raise ValueError('a number is not finite')
except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
    print('[Error] the record of the training in %s is damaged or incomplete (%s: %s)'
          % (result, type(error).__name__, error))
    sys.exit(1)

case = '%s_bs%d_1p_%s' % (network, batch_size, variant)
with open(os.path.join(output, 'train_%s_loss.txt' % case), 'w') as file:
    file.writelines('%.6f\n' % epoch['loss'] for epoch in epochs)
with open(os.path.join(output, case + '.log'), 'w') as file:
    file.writelines('%s = %s\n' % field for field in (
        ('Network', network), ('RankSize', 1), ('BatchSize', batch_size), ('DeviceType', platform.machine()),
        ('CaseName', case), ('ActualFPS', '%.2f' % images_per_second),
        ('TrainingTime', '%.2f' % (1000 * step_seconds)), ('TrainAccuracy', '%.4f' % accuracy),
        ('ActualLoss', '%.6f' % epochs[-1]['loss']), ('E2ETrainingTime', seconds)))
print('images/sec: %d images a step, those of both branches, in %.4f s, the mean over %d of %d epochs%s'
      % (run['images_per_step'], step_seconds, len(timed), len(epochs),
         ', all but the first' if epochs[1:] else ''))
print('------------------ Final result ------------------')
print('Final Performance images/sec : %.2f' % images_per_second)
print('Final Train Accuracy : %.4f' % accuracy)
print('E2E Training Duration sec : %s' % seconds)
END
