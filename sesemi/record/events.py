"""The metrics of a run and a picture of its first batch for TensorBoard: tensorboard --logdir RESULT."""
import glob
import io
import os
import time

import numpy as np
from PIL import Image

from sesemi.device.backend import tf
from sesemi.settings import PROXY_CLASSES
from sesemi.system.files import try_to_write

IMAGES = 8      # most images in the picture of a batch


class Events:
    """Writes the event file of this process into the run's folder. Earlier processes left their own there.

    resumed: the rows of log.csv up to the checkpoint that this process resumes from, [] for a new run;
    inputs: the first batch's, as in TwoBranchBatches. If the file cannot be written, the next `write` begins
    it anew.

    TensorBoard reads event files in the order of their names. At a START event it drops what it has from that
    step on, so steps that an earlier process took after its last checkpoint are not shown twice.
    """

    def __init__(self, folder, resumed, inputs):
        fresh = not glob.glob(os.path.join(glob.escape(folder), 'events.out.tfevents.*'))
        step = resumed[-1]['step'] if resumed else 0
        self.path = os.path.join(folder, 'events.out.tfevents.%010d.%09d' % (time.time(), step))
        self.file, self.events = None, [
            _event(file_version='brain.Event:2'),
            _event(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))]
        if fresh and 'self_data' in inputs:
            image = tf.Summary.Value(tag='proxy_views', image=_image(view_grid(inputs['self_data'])))
            self.events.append(_event(step=0, summary=tf.Summary(value=[image])))
        self.rows = len(resumed)
        self.write(resumed)

    def write(self, rows):
        """Add the rows that are new: each column as a value at the row's step.

        rows: a dict for each epoch so far.
        """
        self.events += [_event(step=row['step'], summary=tf.Summary(value=[
            tf.Summary.Value(tag=name, simple_value=value)
            for name, value in row.items() if name not in ('epoch', 'step')]))
            for row in rows[self.rows:]]
        self.rows = len(rows)
        try_to_write(self._write, self.path)

    def _write(self, path):
        # tf.summary.FileWriter of TensorFlow 1.15 would not report a full disk.
        try:
            if not self.file:
                self.file, self.written = tf.io.TFRecordWriter(os.fsencode(path)), 0
            for event in self.events[self.written:]:
                self.file.write(event.SerializeToString())
            self.file.flush()
            self.written = len(self.events)
        except tf.errors.OpError:
            self.file = None
            raise


def _event(**fields):
    return tf.Event(wall_time=time.time(), **fields)


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
