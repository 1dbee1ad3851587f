"""Saves the results of a benchmark as JSON, case by case, with the machine that they were measured on.

This module only needs torch, so a benchmark runs on a machine with little else. ``report`` makes the pages.
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

_PACKAGES = (
    'torch', 'torchvision', 'mmcv', 'mmdet', 'intel_extension_for_pytorch', 'onnxruntime', 'openvino',
)  # fmt: skip

JSON, MARKDOWN, FIGURE = 'benchmark.json', 'benchmark.md', 'benchmark.png'
GROWTH_JSON = 'growth.json'


def start_record(device: torch.device, quick: bool) -> dict[str, Any]:
    """Makes a record without cases, of the machine and the versions that the cases will be measured with.

    Args:
        device: where to measure.
        quick: whether the medians are rough.
    """
    extension = Path(roi_plugins.__file__).parent / 'ops' / '_C.so'
    kernels = 'none: the PyTorch reference runs'
    if extension_is_loaded():
        kernels = 'sha256 ' + hashlib.sha256(extension.read_bytes()).hexdigest()[:12]
    versions = {'python': platform.python_version(), 'roi_plugins': roi_plugins.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    # Builds of detectron2 have several names.
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


def resume_record(record: dict[str, Any], out: str | Path, file: str = JSON) -> dict[str, Any]:
    """Reads the record in a directory, so that cases can be added to it.

    Args:
        record: a record without cases, of this machine.
        out: the directory.
        file: the file in it, ``JSON`` or ``GROWTH_JSON``.

    Returns:
        The record in the directory; ``record`` itself if there is none.

    Raises:
        DataError: the results there are from another machine, other versions or other options, or are not
            results of this benchmark.
    """
    path = Path(out) / file
    if not path.exists():
        pages = path.with_suffix('.md'), path.with_suffix('.png')
        if taken := [page.name for page in pages if page.exists()]:
            raise DataError(f'{out}: has {" and ".join(taken)} but no {file}; name another directory')
        return record
    kept = read_record(out, file)
    for key, value in record.items():
        if key != 'cases' and kept.get(key) != value:
            raise DataError(
                f'{out}: holds results with another {key} ({kept.get(key)}; now {value}), '
                'which do not belong in one table with new ones; name another directory'
            )
    return kept


def read_record(out: str | Path, file: str = JSON) -> dict[str, Any]:
    """Reads the record in a directory.

    Args:
        out: the directory.
        file: the file in it, ``JSON`` or ``GROWTH_JSON``.

    Raises:
        DataError: there is no record.
    """
    path = Path(out) / file
    record = read_json(path, 'benchmark')
    if not isinstance(record, dict) or not isinstance(record.get('cases'), list):
        raise DataError(f'{path}: not results of a benchmark; name another directory')
    return record


def write_record(record: dict[str, Any], out: str | Path, file: str = JSON) -> None:
    """Writes the file of a record. It is replaced atomically.

    Args:
        record: the record.
        out: the directory to write to; made if need be.
        file: the file in it, ``JSON`` or ``GROWTH_JSON``.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / file, record)
