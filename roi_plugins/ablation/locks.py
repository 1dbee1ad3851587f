"""Which process runs a trial: the kernel's lock on a file, over all machines that share the work directory.

The lock ends with the last process that holds it, however it ends. Over machines it holds where the file
system passes ``flock`` on: NFS does from version 4 on, and version 3 with its lock service; not one mounted
with ``nolock`` or ``local_lock``, nor Lustre with ``localflock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from roi_plugins.ablation.plan import Trial
from roi_plugins.ablation.trial import AblationError, now

LOCKS = '.locks'


@contextlib.contextmanager
def claim(trial: Trial, work_dir: Path) -> Iterator[tuple[int | None, str]]:
    """Takes a trial for this process and those that it passes the lock on to.

    Yields:
        The file descriptor of the lock and ``''``; or None and who has the trial.

    Raises:
        AblationError: the file system knows no locks.
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
                f'{path} cannot be locked ({error.strerror}), so that two processes could run one trial; '
                'give a --work-dir on a file system with locks'
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f'process {os.getpid()} on {socket.gethostname()} since {now()}\n'.encode())
        yield lock, ''
    finally:
        os.close(lock)


def holder(trial: Trial, work_dir: Path) -> str:
    """Who has claimed a trial, on any machine; empty where nobody has.

    One who claims it at this very moment finds it taken, and tries again.
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
