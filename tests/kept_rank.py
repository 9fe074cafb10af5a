"""train_evaluate_sesemi.py with the tiny trunk, looked into: tests/test_ranks.py starts it as a run's ranks.

Each rank leaves its losses, its last trainable weights and its GPU in the folder $KEEP. Rank 1 gives itself
other first weights, which those of rank 0 have to replace.
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
    model.set_weights([weight + rank for weight in model.get_weights()])        # by the same graphs on both

    def kept_step(*arguments):
        metrics = step(*arguments)
        losses.append(metrics['loss'])
        return metrics
    return kept_step


def train(train_step, batches, *arguments, **named):
    progress = real_train(train_step, batches, *arguments, **named)
    np.savez(os.path.join(os.environ['KEEP'], '%d.npz' % batches.rank),
             *training.read_variables(models[-1].trainable_weights), losses=losses,
             gpu=os.environ.get('CUDA_VISIBLE_DEVICES', ''))
    return progress


if __name__ == '__main__':
    training.train, training.training_function = train, training_function
    sys.exit(tiny_trunk.main(sys.argv[1:]))
