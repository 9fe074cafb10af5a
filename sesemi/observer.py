"""What a run writes and prints. Rank 0's observer does both; the other ranks have one that does nothing."""
import contextlib

from sesemi.run_folder import Clock, Run


class Observer:
    """The folder of the run, its log, events, page and epoch line, its checkpoints, evaluations and saved model.

    args: the flags. Raises InputError as run_folder.Run does. A run calls its methods in the order they stand in.
    """

    def __init__(self, args):
        self.clock, self.run = Clock(), Run(args.result, vars(args))

    @property
    def error_rate(self):
        """That of a finished run, else None."""
        return self.run.error_rate

    def starting(self):
        """The block up to `start`, as run_folder.Run.starting has it: an error leaves nothing behind."""
        return self.run.starting()

    def read_split(self, dataset, checksum):
        """The labeled images of the run that is resumed, as run_folder.Run.read_split has them; None if it is a new one."""
        return self.run.read_split(dataset, checksum) if self.run.resuming else None

    def lap(self, part):
        """The time since the last lap was spent on `part`."""
        self.clock.lap(part)

    def start(self, args, device, dataset, chosen, checksum, held):
        """Record a new run. args: the flags, resolved; dataset, chosen: as read; held: names of images that --validation took out."""
        self.run.flags, self.run.device = vars(args), device
        self.run.start(dataset, chosen, checksum, held)

    def watch(self, args, dataset, labeled, batches, steps_per_epoch, progress, checkpoints, evaluation, classifier):
        """The training begins, from `progress` on. dataset, labeled: what is trained on."""
        from sesemi.reporting.events import Events      # imports TensorFlow
        from sesemi.reporting.live import Report
        self.args, self.dataset, self.steps_per_epoch = args, dataset, steps_per_epoch
        self.images_per_step, self.checkpoints, self.evaluation, self.classifier = batches.images_per_step, checkpoints, evaluation, classifier
        self.page = Report(args.result, dataset, labeled, args.epochs)
        self.events = Events(args.result, progress.rows, batches[0][0])

    def after_step(self, progress, stopping):
        """Keep a checkpoint, if it is time."""
        self.run.check_held()
        self.checkpoints.after_step(progress, stopping)

    def after_epoch(self, rows):
        """Have the weights evaluated, which may add to the last row, and bring all that shows the run up to date."""
        from sesemi.training import epoch_line
        self.evaluation.after_epoch(rows)
        self.run.log(rows)
        self.events.write(rows)
        self.page.refresh(rows)
        print(epoch_line(rows[-1], self.args.epochs, self.images_per_step, self.steps_per_epoch))

    def evaluate(self, progress):
        """The error rate of the weights that are kept, on the test images; saves the model and finishes the run's record."""
        self.run.check_held()
        self.checkpoints.save(progress)
        self.lap('training')
        with self.evaluation.kept_weights(progress.rows) as kept:
            probabilities, metrics = self.evaluation.test()
            self.lap('evaluating')
            self.classifier.save(self.run.path('sesemi.h5'))
        metrics.update(validation_error_rate=kept.get('validation_error'), saved_epoch=kept['epoch'])
        result = self.run.result(metrics, progress.rows, self.images_per_step, self.clock)
        if self.args.keep == 'best':
            print('The weights of epoch %d, of the least validation error, %.4f, are saved.' % (kept['epoch'], kept['validation_error']))
        self.page.finish(progress.rows, probabilities, result)
        self.run.finish(result)
        return self.error_rate


class NullObserver:
    """The observer of the ranks above 0."""
    error_rate = None
    starting = staticmethod(contextlib.nullcontext)

    def nothing(self, *_):
        """In place of each of Observer's methods."""

    read_split = lap = start = watch = after_step = after_epoch = evaluate = nothing
