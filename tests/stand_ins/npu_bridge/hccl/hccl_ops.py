"""The sum of int32 values over the ranks, the only operation that the project uses."""
import os

import tensorflow.compat.v1 as tf

from npu_bridge.npu_init import AllReduce


def allreduce(tensor, reduction, fusion=1, fusion_id=-1, group='hccl_world_group'):
    assert (tensor.dtype, reduction, fusion) == (tf.int32, 'sum', 0) and 'Variable' not in tensor.op.type
    total = tf.py_func(AllReduce(int(os.environ['RANK_SIZE'])), [tensor], tensor.dtype)
    total.set_shape(tensor.shape)
    return total
