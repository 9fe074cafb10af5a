"""The metrics of a run and a picture of its first batch for TensorBoard: tensorboard --logdir RESULT."""
import glob
import io
import os
import time

import numpy as np
from PIL import Image

from sesemi.device.backend import tf
from sesemi.errors import InputError
from sesemi.settings import PROXY_CLASSES

IMAGES = 8      # most images in the picture of a batch


class Events:
    """Writes the event file of this process into the run's folder. Earlier processes left their own there.

    resumed: the rows of log.csv up to the checkpoint that this process resumes from, [] for a new run;
    inputs: the first batch's, as in TwoBranchBatches. Raises InputError if the file cannot be written.

    TensorBoard reads event files in the order of their names. At a START event it drops what it has from that
    step on, so steps that an earlier process took after its last checkpoint are not shown twice.
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
        """Add the rows that are new: each column as a value at the row's step.

        rows: a dict for each epoch so far. Raises InputError if the disk is full.
        """
        self._write([tf.Event(step=row['step'], summary=tf.Summary(value=[
            tf.Summary.Value(tag=name, simple_value=value)
            for name, value in row.items() if name not in ('epoch', 'step')]))
            for row in rows[self.written:]])
        self.written = len(rows)

    def _write(self, records):
        # tf.summary.FileWriter of TensorFlow 1.15 would not report a full disk.
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
    """A picture of the first images of a self batch, one per row, in their six proxy views.

    views: normalised float32 (6n, s, s, 3), all images in one transform after the other, as
    batches.make_proxy_views returns them. Returns uint8 (rows * s, 6 * s, 3); the least value is black, the
    greatest white.
    """
    images = views.reshape(PROXY_CLASSES, -1, *views.shape[1:])[:, :IMAGES]
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in images.swapaxes(0, 1)])
    low, high = grid.min(), grid.max()
    return ((grid - low) * (255 / max(high - low, 1e-6))).round().astype(np.uint8)


def _image(pixels):
    """A picture, uint8 (h, w, 3), as a summary. Encoded by Pillow; TensorFlow would need a session for it."""
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, 'PNG')
    return tf.Summary.Image(height=pixels.shape[0], width=pixels.shape[1], colorspace=3,
                            encoded_image_string=memory.getvalue())
