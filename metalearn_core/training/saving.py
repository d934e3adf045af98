"""The checkpoints of a training as it goes: now and then, when the process is asked to end, and at the end."""

from collections.abc import Callable

from torch import Tensor

from metalearn_core import events
from metalearn_core.errors import MetalearnError, StorageError, one_line
from metalearn_core.training.checkpoint import Checkpoints, Progress

STOP_SECONDS = 5.0  # that a bucket has to take the last checkpoint when the process is asked to end
MOST_UNWRITTEN = 3  # checkpoints in a row, that a disk does not take


class Saving:
    """Saves the checkpoints of one run.

    Args:
        checkpoints: where they go.
        packed: gives what a checkpoint holds now; may raise a `MetalearnError`, to keep the one before.
        restarted: the run discarded what was there, as the same command would again.
    """

    def __init__(
        self, checkpoints: Checkpoints, packed: Callable[[], tuple[Progress, dict[str, Tensor]]], *, restarted: bool
    ) -> None:
        self._checkpoints, self._packed = checkpoints, packed
        self._command = "the same command without --restart" if restarted else "the same command"
        self._unwritten = 0

    def at_the_end(self) -> None:
        """Save what the run came to, and wait until it is where it belongs."""
        self._checkpoints.save(*self._packed())

    def on_the_way(self) -> None:
        """Save without waiting for a bucket.

        A bucket that is away costs checkpoints, not the training, and so does for a while a disk that is full.
        """
        try:
            self._checkpoints.save(*self._packed(), wait=0)
            self._unwritten = 0
        except (OSError, StorageError) as error:
            self._unwritten = self._unwritten + 1 if isinstance(error, OSError) else 0
            if self._unwritten == MOST_UNWRITTEN:
                raise
            text = f"a checkpoint was not kept, training goes on: {one_line(error)}"
            events.emit("warning", self._checkpoints.learner, text=text)

    def when_asked_to_end(self) -> str:
        """Save what there is, and return from what the run goes on."""
        place = self._checkpoints.place
        try:
            sent = self._checkpoints.save(*self._packed(), wait=STOP_SECONDS)
        except StorageError:
            sent = False
        except (OSError, MetalearnError) as error:
            why = one_line(error)
            return f"; the last checkpoint could not be written ({why}): {self._command} goes on from the one before"
        if sent:
            return f": {self._command} goes on from {place}"
        return (
            f"; {place} did not take the last checkpoint: on this machine {self._command} goes on from it, on another "
            "one from the one before"
        )
