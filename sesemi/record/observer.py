"""What rank 0 of a run writes and prints while it trains and at its end."""
from sesemi.record.events import Events
from sesemi.record.live import Report


class Observer:
    """Records the run in its folder and begins its log, events and page.

    run: the run_folder.Run of the folder; plan, data: as train_evaluate_sesemi has them; progress: what the
    training goes on from. Raises InputError when a file cannot be written.
    """

    def __init__(self, run, plan, device, data, batches, progress):
        run.start(vars(plan.args), device, data.dataset, data.chosen, data.checksum, data.validation_names)
        self.run, self.args, self.steps_per_epoch = run, plan.args, plan.steps_per_epoch
        self.images_per_step = batches.images_per_step
        self.page = Report(run.folder, data.trained, data.labeled, plan.args.epochs)
        self.events = Events(run.folder, progress.rows, batches[0][0])

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

        probabilities: float32 (n, classes) of the test images; metrics: as evaluation.Evaluation has them;
        seconds: of each part of the run.
        """
        result = self.run.result(metrics, rows, self.images_per_step, seconds)
        if self.args.keep == 'best':
            print('The weights of epoch %d, of the least validation error, %.4f, are saved.' % (
                metrics['saved_epoch'], metrics['validation_error_rate']))
        self.page.finish(rows, probabilities, result)
        self.run.finish(result)


def epoch_line(row, epochs, images_per_step, steps_per_epoch):
    """A finished epoch's row in words, with the time that the epochs left will take."""
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
