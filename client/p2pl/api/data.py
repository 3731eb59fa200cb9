"""Whether data are of a session's task."""

from p2pl.data.load import Data
from p2pl.learning.task import task_of
from p2pl.protocol.session import Task


def checked(data: Data, settings: Task) -> Data:
    """Returns the data, once their targets are seen to be of the session's task.

    Raises:
        DataError: they are not.
        InputError: the task is not known here.
    """
    task = task_of(settings)
    task.check(data.train)
    if data.test is not None:
        task.check(data.test, "test set")
    return data
