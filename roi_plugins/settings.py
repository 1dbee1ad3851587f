"""The settings of a run, and the differences between two runs that are not differences of their extractors.

The tools of each framework write ``settings.json`` to the folder of a run. It has every value of the config
by its dotted key, with the files that the config inherits from, the options, the swapped extractors and the
data. A comparison reads it to tell what differs between its runs. If something other than the extractor
differs, it may be the cause of a difference in AP just as well: the runs are confounded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roi_plugins.files import DataError, read_json, write_json

SETTINGS_FILE = 'settings.json'

EXTRACTOR, CHANNELS, SEED, PLACE, CONFOUNDED = 'extractor', 'channels', 'seed', 'place', 'confounded'
"""Kinds of differences. Only a ``CONFOUNDED`` one makes a comparison of extractors unfair."""

# Extractors in MMDetection's configs, and poolers in Detectron2's LazyConfigs and YAML configs.
_EXTRACTOR = re.compile(r'\.(\w+_)?(roi_extractor|pooler)\.|\.POOLER_(TYPE|SAMPLING_RATIO|OPTIONS)\b')
# Options that the detector decides, not the extractor.
_GEOMETRY = {
    *('output_size', 'featmap_strides', 'finest_scale'),  # MMDetection's names
    *('scales', 'canonical_box_size', 'canonical_level'),  # Detectron2's
}
_CHANNELS = re.compile(
    r'\.roi_heads?\..*\b(in_channels|out_channels|channels|depth)$|\.POOLER_OPTIONS\.DEPTH$'
)
_SEEDS = {'randomness.seed', 'SEED', 'train.seed'}
_PLACES = {'work_dir', 'OUTPUT_DIR', 'train.output_dir'}
# They name the weights to start from. A run that only tests leaves them out.
_WEIGHTS = {'MODEL.WEIGHTS', 'train.init_checkpoint'}
_PREFIX_OF_OUR_HEADS = 'RoIPlugins'


@dataclass(frozen=True)
class Difference:
    """A setting that differs between two runs.

    Attributes:
        key: the dotted key.
        base: the value in the first run; None if it is not set.
        other: the value in the second run; None if it is not set.
        kind: ``EXTRACTOR``, ``CHANNELS`` (channels that an extractor dictates), ``SEED``, ``PLACE`` (the
            folder that a run writes to) or ``CONFOUNDED``.
    """

    key: str
    base: Any
    other: Any
    kind: str

    def __str__(self) -> str:
        base, other = ('not set' if value is None else value for value in (self.base, self.other))
        return f'{self.key}: {base} → {other}'


def write_settings(run_dir: str | Path, config: Mapping[str, Any], trains: bool) -> None:
    """Writes the settings of a run to its folder.

    Args:
        run_dir: the folder of the run; made if need be.
        config: the resolved config, nested as the framework has it or by dotted keys.
        trains: whether the run is a training. A later test in the same folder does not replace its settings.
    """
    path = Path(run_dir, SETTINGS_FILE)
    if not trains and (recorded := _read(path)) and recorded['trains']:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {'format': 1, 'trains': trains, 'settings': flatten(config)})


def read_settings(run_dir: str | Path) -> dict[str, Any] | None:
    """Reads the settings of a run.

    Args:
        run_dir: the folder of the run.

    Returns:
        The settings by their dotted keys; None if the folder has none.

    Raises:
        DataError: they cannot be read.
    """
    recorded = _read(Path(run_dir, SETTINGS_FILE))
    return recorded and recorded['settings']


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    recorded = read_json(path, 'record of the settings')
    if not isinstance(recorded, dict) or not isinstance(recorded.get('settings'), dict):
        raise DataError(f'{path}: not a record of settings; expected an object with settings')
    return {'trains': True, **recorded}


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
    """Flattens a nested config.

    A list of plain values is one value. In a list of lists or mappings, the key of an item is its index.

    Args:
        config: a mapping, list, dataclass or value.
        prefix: the dotted key of the config itself.

    Returns:
        The values by their dotted keys, as JSON can hold them.
    """
    items: Mapping[str, Any]
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if isinstance(config, Mapping):
        items = config
    elif isinstance(config, (list, tuple)) and any(
        isinstance(item, (Mapping, list, tuple)) for item in config
    ):
        items = {str(index): item for index, item in enumerate(config)}
    else:
        return {prefix: _plain(config)}
    found: dict[str, Any] = {}
    for key, value in items.items():
        found |= flatten(value, f'{prefix}.{key}' if prefix else str(key))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float('inf') else str(value)
    name = getattr(value, '__qualname__', None)  # a class or function has one
    # The address of an object differs in each process.
    return f'{value.__module__}.{name}' if name else re.sub(r' at 0x[0-9a-f]+', '', str(value))


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Finds the settings that differ between two runs.

    Args:
        base: the settings of the first run, as :func:`read_settings` gives them.
        other: the settings of the second run.

    Returns:
        The differences, with the confounded ones first.
    """
    base, other = _with_sizes(base), _with_sizes(other)
    found = [
        Difference(key, base.get(key), other.get(key), _kind(key, base.get(key), other.get(key)))
        for key in dict.fromkeys([*base, *other])
        if base.get(key) != other.get(key) and not (key in _WEIGHTS and (key in base) != (key in other))
    ]
    return sorted(found, key=lambda difference: difference.kind != CONFOUNDED)


def _with_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the output size of MMDetection's extractors to one place, and makes it a pair."""
    found = {}
    for key, value in settings.items():
        key = key.replace('roi_extractor.roi_layer.output_size', 'roi_extractor.output_size')
        if key.endswith('.output_size') and isinstance(value, int):
            value = [value, value]
        if value is not None or key not in found:
            found[key] = value
    return found


def _kind(key: str, base: Any, other: Any) -> str:
    if _CHANNELS.search(key):
        return CHANNELS
    if _EXTRACTOR.search(key) and key.rpartition('.')[2] not in _GEOMETRY:
        return EXTRACTOR
    # Our poolers need our RoI heads, which otherwise do what the heads of the framework do.
    if key == 'MODEL.ROI_HEADS.NAME' and _stock_name(base) == _stock_name(other):
        return EXTRACTOR
    # A config that uses our extractors has to import this package.
    if key == 'custom_imports.imports' and _foreign_modules(base) == _foreign_modules(other):
        return EXTRACTOR
    if key == 'custom_imports.allow_failed_imports':
        return EXTRACTOR
    if key in _SEEDS:
        return SEED
    return PLACE if key in _PLACES else CONFOUNDED


def _stock_name(heads: Any) -> str:
    return str(heads).removeprefix(_PREFIX_OF_OUR_HEADS)


def _foreign_modules(imports: Any) -> list[str]:
    """Picks the modules of ``custom_imports.imports`` that are not from this package."""
    modules = [imports] if isinstance(imports, str) else imports or []
    return [module for module in modules if not module.startswith(__package__)]
