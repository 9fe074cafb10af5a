"""train_evaluate_sesemi.py with the tiny trunk, which records what tests/test_ranks.py compares.

Each rank saves its losses, its last trainable weights and its GPU to $RECORD_FOLDER/RANK.npz. Rank 1 begins
with other weights than rank 0, so that a test sees whether those of rank 0 replace them.
"""
import os
import sys

import numpy as np
import tiny_trunk

from sesemi.training import training

real_train, real_function = training.train, training.training_function
models, losses = [], []


def training_function(model, *arguments):
    step = real_function(model, *arguments)
    models.append(model)
    rank = int(os.environ.get('RANK_ID') == '1' or '--rank 1' in ' '.join(sys.argv))
    # rank 0 adds 0, because both ranks must run the same graphs
    model.set_weights([weight + rank for weight in model.get_weights()])

    def recording_step(*arguments):
        metrics = step(*arguments)
        losses.append(metrics['loss'])
        return metrics
    return recording_step


def train(train_step, batches, *arguments, **named):
    progress = real_train(train_step, batches, *arguments, **named)
    np.savez(os.path.join(os.environ['RECORD_FOLDER'], '%d.npz' % batches.rank),
             *training.read_variables(models[-1].trainable_weights), losses=losses,
             gpu=os.environ.get('CUDA_VISIBLE_DEVICES', ''))
    return progress


if __name__ == '__main__':
    training.train, training.training_function = train, training_function
    sys.exit(tiny_trunk.main(sys.argv[1:]))
