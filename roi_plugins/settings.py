"""What a run was configured with, and which differences between two runs are not those of their extractors.

The tools of each framework leave ``settings.json`` in the folder of a run: every value of the config, with
all that it inherits, the options, the swapped extractors and the data, by its dotted key. A comparison reads
them to say what differs between its runs. Whatever is not the extractor's may be the cause of a difference
in AP just as well: such runs are confounded.
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
"""Kinds of differences: only the last one is of something that a comparison of extractors holds equal."""

# MMDetection's extractors; Detectron2's poolers in a LazyConfig, and in YAML.
_EXTRACTOR = re.compile(r'\.(\w+_)?(roi_extractor|pooler)\.|\.POOLER_(TYPE|SAMPLING_RATIO|OPTIONS)\b')
# What an extractor is given rather than what it does.
_GEOMETRY = {
    *('output_size', 'featmap_strides', 'finest_scale'),  # MMDetection's names
    *('scales', 'canonical_box_size', 'canonical_level'),  # Detectron2's
}
_CHANNELS = re.compile(
    r'\.roi_heads?\..*\b(in_channels|out_channels|channels|depth)$|\.POOLER_OPTIONS\.DEPTH$'
)
_SEEDS = {'randomness.seed', 'SEED', 'train.seed'}
_PLACES = {'work_dir', 'OUTPUT_DIR', 'train.output_dir'}
# A mere test leaves these out, which name what it tests.
_WEIGHTS = {'MODEL.WEIGHTS', 'train.init_checkpoint'}
_PREFIX_OF_OUR_HEADS = 'RoIPlugins'


@dataclass(frozen=True)
class Difference:
    """A setting that two runs have not in common.

    Attributes:
        key: dotted.
        base: its value in the first run; None where it is not set.
        other: its value in the second run, likewise.
        kind: ``EXTRACTOR``, ``CHANNELS`` (those that an extractor dictates), ``SEED``, ``PLACE`` (where a run
            writes to) or ``CONFOUNDED``.
    """

    key: str
    base: Any
    other: Any
    kind: str

    def __str__(self) -> str:
        base, other = ('not set' if value is None else value for value in (self.base, self.other))
        return f'{self.key}: {base} → {other}'


def write_settings(run_dir: str | Path, config: Mapping[str, Any], trains: bool) -> None:
    """Leaves the settings of a run in its folder.

    Args:
        run_dir: the folder of the run; made if need be.
        config: nested as the framework has it, or by dotted keys, with everything resolved.
        trains: whether it is a training. Its settings stay when its result is tested in the same folder.
    """
    path = Path(run_dir, SETTINGS_FILE)
    if not trains and (recorded := _read(path)) and recorded['trains']:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {'format': 1, 'trains': trains, 'settings': flatten(config)})


def read_settings(run_dir: str | Path) -> dict[str, Any] | None:
    """The settings of a run by their dotted keys; None where its folder has none.

    Args:
        run_dir: the folder of the run.

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
    """The values of a nested config by their dotted keys, as JSON can hold them.

    Lists of plain values are values; the items of others have their index for a key.

    Args:
        config: a mapping, list, dataclass or value.
        prefix: the dotted key of the config itself.
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
    name = getattr(value, '__qualname__', None)  # of a class or function
    # The address of an object is another one in each process.
    return f'{value.__module__}.{name}' if name else re.sub(r' at 0x[0-9a-f]+', '', str(value))


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """What differs between two runs, by :func:`read_settings`; the confounded ones first.

    Args:
        base: the settings of the first run.
        other: those of the second.
    """
    base, other = _with_sizes(base), _with_sizes(other)
    found = [
        Difference(key, base.get(key), other.get(key), _kind(key, base.get(key), other.get(key)))
        for key in dict.fromkeys([*base, *other])
        if base.get(key) != other.get(key) and not (key in _WEIGHTS and (key in base) != (key in other))
    ]
    return sorted(found, key=lambda difference: difference.kind != CONFOUNDED)


def _with_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the output size of each of MMDetection's extractors at one place, and as a pair everywhere."""
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
    # Ours stand in for the framework's where a pooler of ours is asked for.
    if key == 'MODEL.ROI_HEADS.NAME' and _stock_name(base) == _stock_name(other):
        return EXTRACTOR
    # Which modules are imported, and the flag that goes with them.
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
    """Of ``custom_imports.imports``: the modules that are not this package's."""
    modules = [imports] if isinstance(imports, str) else imports or []
    return [module for module in modules if not module.startswith(__package__)]
