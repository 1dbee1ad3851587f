"""The name of the processor, for records of runs and measurements."""

import contextlib
import platform
from pathlib import Path


def cpu_name() -> str:
    """Returns the CPU's model name, or the architecture where the system does not tell the model."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
