r"""What the re-run of Mask R-CNN's Tables 2c and 2d shows of the paper's claims.

    python docs/results/published.py work_dirs/shapes_table2c work_dirs/shapes_table2d \
        --output docs/results/published

writes ``published.md``, the tables of ``README.md``.
Given the work directory of ``test_only_shapes.yaml`` alone, the table is that of its swapped extractors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from roi_plugins.ablation.results import find_runs
from roi_plugins.evaluation.bootstrap import RunSample, contrast, resample_images, sample_run
from roi_plugins.evaluation.coco import METRICS, format_points, match_predictions, summarize
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.files import atomic_write

NAMES = {'segm': 'mask', 'bbox': 'box'}  # the paper's table is of masks
STRIDES = {'stride_16': 'stride 16', 'stride_32': 'stride 32'}
POOL = 'quantized-pool'
TEXT_COLUMNS = ('extractor', 'weights', 'claim', 'where', *(f'{name}: verdict' for name in NAMES.values()))
SHOWN_METRICS = ('AP', 'AP50', 'AP75')

# He et al., "Mask R-CNN", ICCV 2017, Tables 2c (masks) and 2d: AP, AP50, AP75. None: not looked up.
PAPER = {
    ('stride_16', 'segm', POOL): (26.9, 48.8, 26.4),
    ('stride_16', 'segm', 'align-max'): (30.2, 51.0, 31.8),
    ('stride_16', 'segm', 'align-avg'): (30.3, 51.2, 31.5),
    ('stride_32', 'segm', POOL): (23.6, None, 21.6),
    ('stride_32', 'segm', 'align-avg'): (30.9, None, 32.1),
    ('stride_32', 'bbox', POOL): (28.2, None, 26.9),
    ('stride_32', 'bbox', 'align-avg'): (34.0, None, 36.4),
}

# Two are alike if they differ by no more than this, in points. Set before the first trial was run.
MARGIN = 2.0

# (config, extractor, metric) -> weight
Contrast = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class Claim:
    """A weighted sum of AP that a claim says to be above zero or, if ``alike``, close to it."""

    text: str
    where: str
    terms: Contrast
    alike: bool = False


def gap(config: str, better: str, worse: str, metric: str) -> Contrast:
    return {(config, better, metric): 1, (config, worse, metric): -1}


def minus(first: Contrast, second: Contrast) -> Contrast:
    terms = dict(first)
    for key, weight in second.items():
        terms[key] = terms.get(key, 0) - weight
    return terms


def claims() -> Iterator[Claim]:
    for metric in ('AP', 'AP75'):
        for config, stride in STRIDES.items():
            terms = gap(config, 'align-avg', POOL, metric)
            yield Claim('RoIAlign above RoIPool', f'{metric}, {stride}', terms)
    for config, stride in STRIDES.items():
        gaps = (gap(config, 'align-avg', POOL, metric) for metric in ('AP75', 'AP50'))
        yield Claim('its lead larger at AP75 than at AP50', stride, minus(*gaps))
    for metric in ('AP', 'AP75'):
        gaps = (gap(config, 'align-avg', POOL, metric) for config in ('stride_32', 'stride_16'))
        yield Claim('its lead larger at stride 32 than at 16', metric, minus(*gaps))
    for config, stride in STRIDES.items():
        terms = gap(config, 'align-max', 'align-avg', 'AP')
        yield Claim('RoIAlign: max and avg alike', f'AP, {stride}', terms, alike=True)
    for config, stride in STRIDES.items():
        for warp in ('roi-warp-max', 'roi-warp-avg'):
            terms = gap(config, warp, POOL, 'AP')
            yield Claim(f'{warp} on par with RoIPool', f'AP, {stride}', terms, alike=True)
            terms = minus(gap(config, 'align-avg', warp, 'AP'), terms)
            yield Claim(f'{warp} nearer to RoIPool than to RoIAlign', f'AP, {stride}', terms)
    for config, stride in STRIDES.items():
        for metric in ('AP', 'AP75'):
            terms = gap(config, 'align-avg', 'align-avg-unaligned', metric)
            yield Claim('the half-cell shift alone costs', f'{metric}, {stride}', terms)
            terms = gap(config, 'align-avg-unaligned', POOL, metric)
            yield Claim('quantisation costs beyond the shift', f'{metric}, {stride}', terms)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dirs', nargs='+', help='those of the plans shapes_table2c.yaml and shapes_table2d.yaml'
    )
    parser.add_argument('--bootstrap', type=int, default=1000, help='resamples (default: 1000)')
    parser.add_argument('--output', type=Path, required=True)
    args = parser.parse_args()
    samples = read_samples(args.work_dirs, args.bootstrap)
    judged = [judge(claim, iou_type, samples) for claim in claims() for iou_type in NAMES]
    args.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.output / 'published.md') as aside:
        aside.write_text(to_markdown(samples, judged), encoding='utf-8')


def read_samples(work_dirs: list[str], resamples: int) -> dict[tuple[str, str, str], dict[int, RunSample]]:
    """The runs by config, extractor and IoU type, then by seed."""
    runs = find_runs(work_dirs).runs
    coco = load_annotations(runs[0].ann_file)
    counts = resample_images(len(coco.imgs), resamples, seed=0)
    samples: dict[tuple[str, str, str], dict[int, RunSample]] = {}
    for run in runs:
        for iou_type in NAMES:
            matches = match_predictions(coco, run.predictions[iou_type], iou_type)
            sample = sample_run(summarize(matches), matches, counts)
            samples.setdefault((run.config_name, run.extractor, iou_type), {})[run.seed] = sample
    return samples


def judge(
    claim: Claim, iou_type: str, samples: Mapping[tuple[str, str, str], Mapping[int, RunSample]]
) -> dict[str, Any]:
    """What is known of a claim; without the seeds that one of its trials lacks."""
    runs = {key: samples.get((key[0], key[1], iou_type), {}) for key in claim.terms}
    seeds = set.intersection(*(set(by_seed) for by_seed in runs.values()))
    found: dict[str, Any] = {
        'claim': claim.text,
        'where': claim.where,
        'iou_type': iou_type,
        'seeds': sorted(seeds),
        'paper': paper_value(claim.terms, iou_type),
        'verdict': 'not run',
    }
    if seeds:
        terms = [
            (weight, {seed: runs[key][seed] for seed in sorted(seeds)}, key[2])
            for key, weight in claim.terms.items()
        ]
        estimate = contrast(terms)
        found |= {column: None if pd.isna(value) else value for column, value in estimate.items()}
        found['verdict'] = verdict(claim, 100 * estimate['low'], 100 * estimate['high'])
    return found


def verdict(claim: Claim, low: float, high: float) -> str:
    """By the 95% interval alone, in points."""
    if claim.alike:
        if low >= -MARGIN and high <= MARGIN:
            return 'shown'
        return 'not alike' if low > MARGIN or high < -MARGIN else 'open'
    if low > 0:
        return 'shown'
    return 'the opposite' if high < 0 else 'open'


def paper_value(terms: Contrast, iou_type: str) -> float | None:
    """The same sum of the paper's figures, in points."""
    total = 0.0
    for (config, extractor, metric), weight in terms.items():
        row = PAPER.get((config, iou_type, extractor))
        value = row and row[SHOWN_METRICS.index(metric)]
        if value is None:
            return None
        total += weight * value
    return round(total, 1)


def to_markdown(
    samples: Mapping[tuple[str, str, str], Mapping[int, RunSample]], judged: list[dict[str, Any]]
) -> str:
    parts = []
    for config, stride in STRIDES.items():
        if rows := ap_rows(config, samples):
            parts += [f'### {stride.capitalize()}', format_table(rows)]
    if any(found['seeds'] for found in judged):
        parts += ['### The claims', format_table(claim_rows(judged))]
    if rows := swap_rows(samples):
        parts += ['### Swapped at the test', format_table(rows)]
    return '\n\n'.join(parts) + '\n'


def ap_rows(
    config: str, samples: Mapping[tuple[str, str, str], Mapping[int, RunSample]]
) -> list[dict[str, str]]:
    rows = []
    for extractor in dict.fromkeys(key[1] for key in samples if key[0] == config):
        row = {'extractor': extractor}
        for iou_type, name in NAMES.items():
            runs = samples[config, extractor, iou_type]
            row['seeds'] = str(len(runs))
            for metric in SHOWN_METRICS:
                values = pd.Series([run.values[METRICS.index(metric)] for run in runs.values()])
                cell = format_points(values.mean(), 1)
                if len(values) > 1:
                    cell += f' ± {format_points(values.std(), 1)}'
                row[f'{name} {metric}'] = cell
            paper = PAPER.get((config, iou_type, extractor), ())
            row[f'paper, {name}'] = ' / '.join('–' if value is None else str(value) for value in paper)
        rows.append(row)
    return rows


def swap_rows(samples: Mapping[tuple[str, str, str], Mapping[int, RunSample]]) -> list[dict[str, str]]:
    """A row for the weights of each extractor, AP of masks / boxes with each extractor at the test."""
    rows = []
    swapped = [key for key in samples if ', trained with ' in key[0]]
    extractors = dict.fromkeys(extractor for _, extractor, _ in swapped)
    for config in dict.fromkeys(key[0] for key in swapped):
        own = {key[1:]: runs for key, runs in samples.items() if key[0] == config}
        seeds = set.intersection(*map(set, own.values()))
        row = {'weights': config, 'seeds': str(len(seeds))}
        for extractor in extractors:
            if (extractor, 'segm') not in own:
                row[extractor] = 'not run'
                continue
            means = (
                pd.Series([own[extractor, t][seed].values[METRICS.index('AP')] for seed in seeds]).mean()
                for t in NAMES
            )
            row[extractor] = ' / '.join(format_points(mean, 1) for mean in means)
        rows.append(row)
    return rows


def claim_rows(judged: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row a claim and a place, with masks and boxes side by side."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for found in judged:
        key = found['claim'], found['where']
        row = rows.setdefault(key, {'claim': key[0], 'where': key[1], 'seeds': str(len(found['seeds']))})
        name = NAMES[found['iou_type']]
        paper = found['paper']
        row[f'paper, {name}'] = '' if paper is None else f'{paper:+.1f}'
        row[name] = ''
        if found['verdict'] != 'not run':
            value, low, high = (format_points(found[k], 1, sign=True) for k in ('value', 'low', 'high'))
            row[name] = f'{value} [{low}, {high}]'
        row[f'{name}: verdict'] = found['verdict']
    return list(rows.values())


def format_table(rows: list[dict[str, str]]) -> str:
    columns = list(rows[0])
    rule = ['---' if column in TEXT_COLUMNS else '---:' for column in columns]
    lines = [columns, rule, *(list(row.values()) for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


if __name__ == '__main__':
    main()
