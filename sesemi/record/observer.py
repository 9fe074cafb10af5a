"""What a run writes and prints: rank 0's business."""
import contextlib

from sesemi.record.run_folder import Run


@contextlib.contextmanager
def observe(args):
    """The block within which the folder of a run is this process's own; gives its Observer. args: the flags."""
    observer = Observer(args)
    with observer.run.held():
        yield observer


class Observer:
    """The folder of the run, its log, events, page and epoch line.

    args: the flags. Raises InputError as run_folder.Run does. A run calls its methods in the order they stand in.
    """

    def __init__(self, args):
        self.run = Run(args.result, vars(args))

    @property
    def error_rate(self):
        """That of a finished run, else None."""
        return self.run.error_rate

    def read_split(self, dataset, checksum):
        """The labeled images of the run that is resumed, as run_folder.Run.read_split has them; None if it is a new one."""
        return self.run.read_split(dataset, checksum) if self.run.resuming else None

    def start(self, args, device, dataset, chosen, checksum, held):
        """Record a new run. args: the flags, resolved; dataset, chosen: as read; held: names of images that --validation took out."""
        self.run.flags, self.run.device = vars(args), device
        self.run.start(dataset, chosen, checksum, held)

    def watch(self, args, dataset, labeled, batches, steps_per_epoch, progress):
        """The training begins, from `progress` on. dataset, labeled: what is trained on."""
        from sesemi.record.events import Events  # imports TensorFlow
        from sesemi.record.live import Report
        self.args, self.dataset, self.steps_per_epoch = args, dataset, steps_per_epoch
        self.images_per_step = batches.images_per_step
        self.page = Report(args.result, dataset, labeled, args.epochs)
        self.events = Events(args.result, progress.rows, batches[0][0])

    def check_held(self):
        """Raises InputError when the folder is no longer this run's, as run_folder.Run has it."""
        self.run.check_held()

    def after_epoch(self, rows):
        """Bring all that shows the run up to date."""
        self.run.log(rows)
        self.events.write(rows)
        self.page.refresh(rows)
        print(epoch_line(rows[-1], self.args.epochs, self.images_per_step, self.steps_per_epoch))

    def finish(self, rows, probabilities, metrics, seconds):
        """Finish the record of the run.

        probabilities: float32 (n, classes) of the test images; metrics: as evaluation.Evaluation has them; seconds: of each part of the run.
        """
        result = self.run.result(metrics, rows, self.images_per_step, seconds)
        if self.args.keep == 'best':
            print('The weights of epoch %d, of the least validation error, %.4f, are saved.' % (
                metrics['saved_epoch'], metrics['validation_error_rate']))
        self.page.finish(rows, probabilities, result)
        self.run.finish(result)


def epoch_line(row, epochs, images_per_step, steps_per_epoch):
    """A finished epoch's row in words, with the time that the epochs left will take."""
    words = ['Epoch %d/%d: loss %.3f' % (row['epoch'], epochs, row['loss']), 'super %.3f' % row['super_clf_loss']]
    if 'self_clf_loss' in row:
        words += ['self %.3f' % row['self_clf_loss'], 'proxy accuracy %.3f' % row['self_clf_acc']]
    words += ['labeled accuracy %.3f' % row['super_clf_acc'], 'rate %.4f' % row['learning_rate'],
              '%.0f images/s' % (images_per_step * steps_per_epoch / row['seconds'])]
    words += ['%s %.4f' % (name, row[column])
              for column, name in (('validation_error', 'validation error'), ('error', 'error rate')) if column in row]
    return ', '.join(words) + ', %.0f min left' % (row['seconds'] * (epochs - row['epoch']) / 60)
