"""train_evaluate_sesemi.py with the tiny trunk, looked into: what tests/test_ranks.py starts as the ranks of a run.

Each rank leaves its losses, its last trainable weights and its GPU in the folder $KEEP. Rank 1 gives itself other first weights,
which those of rank 0 have to replace.
"""
import os
import sys

import numpy as np
import tiny_trunk

import train_evaluate_sesemi
from sesemi import training
from sesemi.runtime import keras

real_train, real_compile = training.train, training.compile_model


def train(model, batches, *arguments, **named):
    real_step, losses = model.train_on_batch, []

    def train_on_batch(*batch):
        metrics = real_step(*batch)
        losses.append(metrics[0])
        return metrics
    model.train_on_batch = train_on_batch
    progress = real_train(model, batches, *arguments, **named)
    np.savez(os.path.join(os.environ['KEEP'], '%d.npz' % batches.rank), *map(keras.backend.get_value, model.trainable_weights),
             losses=losses, gpu=os.environ.get('CUDA_VISIBLE_DEVICES', ''))
    return progress


def compile_model(model, optimizer):
    real_compile(model, optimizer)
    if os.environ.get('RANK_ID') == '1' or '--rank 1' in ' '.join(sys.argv):
        model.set_weights([weight + 1 for weight in model.get_weights()])


if __name__ == '__main__':
    tiny_trunk.sesemi.TRUNKS['nin'] = tiny_trunk.trunk
    training.train, training.compile_model = train, compile_model
    sys.exit(train_evaluate_sesemi.main(sys.argv[1:]))
