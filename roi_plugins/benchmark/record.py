"""Results of a benchmark as JSON: where they were measured, kept case by case.

Needs torch alone, so that a benchmark runs on a bare machine; ``report`` makes the pages.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import roi_plugins
from roi_plugins.files import DataError, read_json, write_json
from roi_plugins.hardware import cpu_name
from roi_plugins.ops.library import extension_is_loaded

JSON, MARKDOWN, FIGURE = 'benchmark.json', 'benchmark.md', 'benchmark.png'


def start_record(device: torch.device, quick: bool) -> dict[str, Any]:
    """A record without cases: where and with what the cases will be measured."""
    extension = Path(roi_plugins.__file__).parent / 'ops' / '_C.so'
    kernels = 'none: the PyTorch reference runs'
    if extension_is_loaded():
        kernels = 'sha256 ' + hashlib.sha256(extension.read_bytes()).hexdigest()[:12]
    versions = {'python': platform.python_version(), 'roi_plugins': roi_plugins.__version__}
    for name in ('torch', 'torchvision', 'mmcv', 'mmdet'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    # Builds of detectron2 go by several names.
    for name in metadata.packages_distributions().get('detectron2', []):
        versions[name] = metadata.version(name)
    machine = {
        'cpu': cpu_name(),
        'cores': os.cpu_count(),
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'gpu': None,
        'cuda': None,
    }
    if device.type == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name(device)
        machine['cuda'] = torch.version.cuda
        machine['compute_capability'] = '.'.join(map(str, torch.cuda.get_device_capability(device)))
    return {
        'format': 1,
        'machine': machine,
        'versions': versions,
        'kernels': kernels,
        'device': device.type,
        'threads': torch.get_num_threads(),
        'large_pages': os.environ.get('THP_MEM_ALLOC_ENABLE') == '1',
        'quick': quick,
        'cases': [],
    }


def resume_record(record: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """The record in the directory ``out`` to which cases can be added; ``record`` itself if none is there.

    Raises:
        DataError: the results there were measured elsewhere or otherwise, or are not ours.
    """
    path = Path(out) / JSON
    if not path.exists():
        if taken := [name for name in (MARKDOWN, FIGURE) if (path.parent / name).exists()]:
            raise DataError(f'{out}: has {" and ".join(taken)} but no {JSON}; name another directory')
        return record
    kept = read_record(out)
    for key, value in record.items():
        if key != 'cases' and kept.get(key) != value:
            raise DataError(
                f'{out}: holds results with another {key} ({kept.get(key)}; now {value}), '
                'with which new ones do not belong in one table; name another directory'
            )
    return kept


def read_record(out: str | Path) -> dict[str, Any]:
    """Returns the record in the directory ``out``.

    Raises:
        DataError: there is none.
    """
    path = Path(out) / JSON
    record = read_json(path, 'benchmark')
    if not isinstance(record, dict) or not isinstance(record.get('cases'), list):
        raise DataError(f'{path}: not results of a benchmark; name another directory')
    return record


def write_record(record: dict[str, Any], out: str | Path) -> None:
    """Writes ``benchmark.json`` in the directory ``out``; the file is replaced as a whole."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON, record)
