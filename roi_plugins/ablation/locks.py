"""File locks that let one process run a trial, among all machines that share the work directory.

The kernel releases a lock when the last process that holds it ends, however it ends. A lock works between
machines only if the file system passes ``flock`` on. NFS does so from version 4 on, and in version 3 with its
lock service. NFS mounted with ``nolock`` or ``local_lock`` does not, nor does Lustre with ``localflock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from roi_plugins.ablation.job import AblationError, now
from roi_plugins.ablation.trial import Trial

LOCKS = '.locks'


@contextlib.contextmanager
def claim(trial: Trial, work_dir: Path) -> Iterator[tuple[int | None, str]]:
    """Claims a trial for this process and for the processes that it passes the lock on to.

    Args:
        trial: the trial.
        work_dir: the folder of the run directories.

    Yields:
        The file descriptor of the lock and ``''``; or None and the name of the process that has the trial.

    Raises:
        AblationError: the file system has no locks.
    """
    path = work_dir / LOCKS / trial.name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None, os.read(lock, 1000).decode(errors='replace').strip()
            return
        except OSError as error:
            raise AblationError(
                f'{path} cannot be locked ({error.strerror}), so two processes could run the same trial; '
                'give a --work-dir on a file system with locks'
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f'process {os.getpid()} on {socket.gethostname()} since {now()}\n'.encode())
        yield lock, ''
    finally:
        os.close(lock)


def holder(trial: Trial, work_dir: Path) -> str:
    """Tells which process has claimed a trial, on any machine; empty if none has.

    A process that claims the trial at the same moment finds it taken, and tries again.

    Args:
        trial: the trial.
        work_dir: the folder of the run directories.
    """
    try:
        lock = os.open(work_dir / LOCKS / trial.name, os.O_RDONLY)
    except FileNotFoundError:
        return ''
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ''
    except BlockingIOError:
        return os.read(lock, 1000).decode(errors='replace').strip() or 'a process that has just begun'
    finally:
        os.close(lock)
