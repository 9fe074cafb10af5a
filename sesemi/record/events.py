"""The metrics of a run and a picture of its first batch as TensorBoard events: tensorboard --logdir
RESULT.
"""
import glob
import io
import os
import time

import numpy as np
from PIL import Image

from sesemi.device.backend import tf
from sesemi.errors import InputError
from sesemi.settings import PROXY_CLASSES

IMAGES = 8      # in the picture of a batch


class Events:
    """The event file of this process, in the run's folder beside those of processes before it.

    resumed: the rows of log.csv that this process goes on from, [] at the start; inputs: those of the first
    batch, as TwoBranchBatches gives them. Raises InputError when the file cannot be written.

    TensorBoard reads event files by name and at a START drops what it has of that step and later ones, so
    that what a stopped process did beyond its last checkpoint is not shown twice.
    """

    def __init__(self, folder, resumed, inputs):
        fresh = not glob.glob(os.path.join(glob.escape(folder), 'events.out.tfevents.*'))
        step = resumed[-1]['step'] if resumed else 0
        self.written = len(resumed)
        self.path = os.path.join(folder, 'events.out.tfevents.%010d.%09d' % (time.time(), step))
        records = [tf.Event(file_version='brain.Event:2'),
                   tf.Event(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))]
        if fresh and 'self_data' in inputs:
            image = tf.Summary.Value(tag='proxy_views', image=_image(view_grid(inputs['self_data'])))
            records.append(tf.Event(step=0, summary=tf.Summary(value=[image])))
        self.file = None
        self._write(records)

    def write(self, rows):
        """Add what is new in the rows of all epochs so far: each column at the row's step. Raises InputError
        on a full disk.
        """
        self._write([tf.Event(step=row['step'], summary=tf.Summary(value=[
            tf.Summary.Value(tag=name, simple_value=value)
            for name, value in row.items() if name not in ('epoch', 'step')]))
            for row in rows[self.written:]])
        self.written = len(rows)

    def _write(self, records):
        # Not by tf.summary.FileWriter: on TensorFlow 1.15 it says nothing of a full disk.
        try:
            self.file = self.file or tf.io.TFRecordWriter(self.path)
            for record in records:
                record.wall_time = time.time()
                self.file.write(record.SerializeToString())
            self.file.flush()
        except tf.errors.OpError as error:
            raise InputError('%s: cannot be written (%s); make room or give another --result. What was saved '
                             'before is whole.'
                             % (self.path, error.message.split('; ')[-1])) from None


def view_grid(views):
    """The first images of a self batch, a row an image and its six proxy views side by side, as uint8 (rows *
    s, 6 * s, 3).

    views: normalised float32 (6n, s, s, 3), one transform after the other, as batches.make_proxy_views gives
    them. The least value of all is black, the greatest white.
    """
    images = views.reshape(PROXY_CLASSES, -1, *views.shape[1:])[:, :IMAGES]
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in images.swapaxes(0, 1)])
    low, high = grid.min(), grid.max()
    return ((grid - low) * (255 / max(high - low, 1e-6))).round().astype(np.uint8)


def _image(pixels):
    """uint8 (h, w, 3) as a summary; Pillow makes the PNG, which needs no session."""
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, 'PNG')
    return tf.Summary.Image(height=pixels.shape[0], width=pixels.shape[1], colorspace=3,
                            encoded_image_string=memory.getvalue())
