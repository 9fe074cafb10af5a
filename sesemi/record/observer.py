"""What rank 0 of a run writes and prints after each epoch and at the end."""
from sesemi.record.events import Events
from sesemi.record.live import Report


class Observer:
    """Starts the run's record in its folder, then keeps its log, events and page.

    run: the run_folder.Run; plan, data: train_evaluate_sesemi's Plan and Data; device: 'cpu', 'gpu' or 'npu';
    batches: the TwoBranchBatches; progress: the training.Progress to go on from. Raises InputError if
    args.json, labeled.csv or result.json cannot be written, and as Run.check_held. If another file cannot be
    written, that is said once and tried again.
    """

    def __init__(self, run, plan, device, data, batches, progress):
        run.start(vars(plan.args), device, data.dataset, data.chosen, data.checksum, data.validation_names)
        self.run, self.args, self.steps_per_epoch = run, plan.args, plan.steps_per_epoch
        self.images_per_step = batches.images_per_step
        self.page = Report(run.folder, data.trained, data.labeled, plan.args.epochs)
        self.events = Events(run.folder, progress.rows, batches[0][0])

    def check_held(self):
        """Raises InputError if the folder is no longer this run's; see run_folder.Run.check_held."""
        self.run.check_held()

    def after_epoch(self, rows):
        """Update the log, events and page, and print a line. rows: a dict for each epoch so far."""
        self.run.log(rows)
        self.events.write(rows)
        self.page.refresh(rows)
        print(epoch_line(rows[-1], self.args.epochs, self.images_per_step, self.steps_per_epoch))

    def finish(self, rows, probabilities, metrics, seconds):
        """Write the complete report, then result.json.

        rows: a dict for each epoch; probabilities: float32 (n, classes) of the test images; metrics: a dict,
        as from evaluation.Evaluation.test; seconds: {part of the run: seconds}.
        """
        result = self.run.result(metrics, rows, self.images_per_step, seconds)
        if self.args.keep == 'best':
            print('The weights of epoch %d, of the least validation error, %.4f, are saved.' % (
                metrics['saved_epoch'], metrics['validation_error_rate']))
        self.run.log(rows)
        self.events.write(rows)
        self.page.finish(rows, probabilities, result)
        self.run.finish(result)


def epoch_line(row, epochs, images_per_step, steps_per_epoch):
    """A finished epoch's row in words, with the time that the remaining epochs will take."""
    words = ['Epoch %d/%d: loss %.3f' % (row['epoch'], epochs, row['loss']),
             'super %.3f' % row['super_clf_loss']]
    if 'self_clf_loss' in row:
        words += ['self %.3f' % row['self_clf_loss'], 'proxy accuracy %.3f' % row['self_clf_acc']]
    words += ['labeled accuracy %.3f' % row['super_clf_acc'], 'rate %.4f' % row['learning_rate'],
              '%.0f images/s' % (images_per_step * steps_per_epoch / row['seconds'])]
    words += ['%s %.4f' % (name, row[column])
              for column, name in (('validation_error', 'validation error'), ('error', 'error rate'))
              if column in row]
    return ', '.join(words) + ', %.0f min left' % (row['seconds'] * (epochs - row['epoch']) / 60)
