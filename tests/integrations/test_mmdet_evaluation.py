"""The AP of a test is the one that MMDetection reports for the same predictions, or a refusal before it."""

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.files import DataError
from roi_plugins.integrations import output
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.mmdet import runner
from roi_plugins.integrations.mmdet.check_test import TEST_SETTINGS, check_test
from roi_plugins.integrations.mmdet.test import test as run_test
from roi_plugins.integrations.mmdet.train import train

ROOT = Path(__file__).resolve().parents[2]
STOCK = ROOT / 'configs/mmdet/shapes/mask-rcnn_r18-c4_shapes.py'
NAMES = ('ellipse', 'triangle', 'rectangle', 'star', 'cross')
ITEMS = {'AP': 'mAP', 'AP50': 'mAP_50', 'AP75': 'mAP_75', 'APs': 'mAP_s', 'APm': 'mAP_m', 'APl': 'mAP_l'}


class Renamed(CocoMetric):
    """A subclass that evaluates as its parent does."""


class Different(CocoMetric):
    def compute_metrics(self, results):
        return {}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Generated images, whose categories are not in the order of the config's classes."""
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=8, num_val=8, image_size=96))
    for split in ('train', 'val'):
        path = root / 'annotations' / f'instances_{split}.json'
        annotations = json.loads(path.read_text())
        annotations['categories'].reverse()
        path.write_text(json.dumps(annotations))
    return root


@pytest.fixture
def options(data):
    ann_file = str(data / 'annotations/instances_val.json')
    return {
        'train_dataloader.dataset.data_root': f'{data}/',
        'test_dataloader.dataset.data_root': f'{data}/',
        'test_evaluator.ann_file': ann_file,
    }


def predict(cfg, per_image=20):
    """What MMDetection's test loop does, for predictions that are drawn around the objects."""
    init_default_scope('mmdet')
    dataset = DATASETS.build(copy.deepcopy(cfg.test_dataloader.dataset))
    evaluator = Runner.build_evaluator(None, copy.deepcopy(cfg.test_evaluator))
    evaluator.dataset_meta = dataset.metainfo
    labels = len(dataset.metainfo['classes'])
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        rng = np.random.default_rng(info['img_id'])
        boxes = [instance['bbox'] for instance in info['instances']]
        found = [(i['bbox_label'], np.array(i['bbox']) + rng.normal(0, 3, 4)) for i in info['instances']]
        while len(found) < per_image:  # near misses and boxes of other classes
            box = np.array(boxes[rng.integers(len(boxes))]) if boxes else np.array([8, 8, 30, 30])
            found.append((int(rng.integers(labels)), box + rng.normal(0, 6, 4)))
        corners = np.array([box for _, box in found], np.float32).clip(0, 96)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
        masks = np.zeros((len(found), info['height'], info['width']), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, corners.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        instances = {
            'bboxes': torch.from_numpy(corners),
            # The objects' own are not the first, so that a limit of detections cuts some.
            'scores': torch.from_numpy(rng.random(len(found)).astype(np.float32)),
            'labels': torch.tensor([label for label, _ in found]),
            'masks': torch.from_numpy(masks),
        }
        shape = (info['height'], info['width'])
        sample = {'img_id': info['img_id'], 'ori_shape': shape, 'pred_instances': instances}
        evaluator.process([sample])
    return evaluator.evaluate(len(dataset))


def both_numbers(cfg_options, work_dir, monkeypatch, per_image=20, **arguments):
    """What MMDetection reports, and what the tool writes."""
    cfg = Config.fromfile(STOCK)
    cfg.merge_from_dict(cfg_options)
    expected = predict(cfg, per_image)
    work_dir.mkdir(exist_ok=True)
    torch.save({'state_dict': {}}, work_dir / 'iter_1.pth')
    with monkeypatch.context() as patch:
        patch.setattr(runner, 'run', lambda cfg, phase: (predict(cfg, per_image), torch.nn.Identity())[1])
        record = run_test(
            STOCK,
            work_dir / 'iter_1.pth',
            work_dir=work_dir,
            cfg_options=cfg_options,
            overwrite=True,
            **arguments,
        )
    return expected, record


def assert_equal_numbers(expected, record):
    kinds = {key.split('/')[1].split('_')[0] for key in expected if 'mAP' in key}
    assert record['metrics'].keys() == kinds
    for kind, metrics in record['metrics'].items():
        for ours, theirs in ITEMS.items():
            found = expected[f'coco/{kind}_{theirs}']  # MMDetection rounds to three decimals
            assert metrics[ours] == pytest.approx(found, abs=6e-4), (kind, ours)


def with_classes(options, names):
    heads = {f'model.roi_head.{head}.num_classes': len(names) for head in ('bbox_head', 'mask_head')}
    classes = {f'{half}_dataloader.dataset.metainfo.classes': list(names) for half in ('train', 'test')}
    return {**options, **heads, **classes}


@pytest.mark.slow
def test_ap_is_over_the_classes_of_the_config(data, options, tmp_path, monkeypatch):
    """Not over all categories of the annotation file, as it was: 0.085 in place of 0.211."""
    expected, record = both_numbers(with_classes(options, ('triangle', 'cross')), tmp_path, monkeypatch)
    assert_equal_numbers(expected, record)
    assert record['metrics']['bbox']['AP'] > 0.05
    assert os.path.samefile(record['image_dir'], data / 'val')
    # compare.py reads it: the annotations that the AP is of are in the run.
    assert record['ann_file'] == str(tmp_path / 'annotations.json')
    annotations = json.loads((tmp_path / 'annotations.json').read_text())
    assert {category['name'] for category in annotations['categories']} == {'triangle', 'cross'}
    # Another test of all classes leaves no copy behind.
    _, record = both_numbers(options, tmp_path, monkeypatch)
    assert record['ann_file'] == options['test_evaluator.ann_file']
    assert not (tmp_path / 'annotations.json').exists()


def wrap(spelling, metric):
    """One evaluation in the ways in which a config can write it."""
    if spelling == 'list':
        return [metric]
    if spelling == 'several':
        return [{**metric, 'metric': 'bbox'}, {**metric, 'metric': 'segm'}]
    return metric


@pytest.mark.slow
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # an example takes two seconds, too long to look for a smaller one
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True),
    kind=st.sampled_from(['CocoMetric', 'mmdet.CocoMetric', CocoMetric, Renamed]),
    spelling=st.sampled_from(['dict', 'list', 'several']),
    metric=st.sampled_from(['bbox', ['bbox'], ['segm', 'bbox'], 'segm']),
    limits=st.sampled_from([None, (1, 10, 100), (100, 1, 10), (10, 100, 300), (100, 200, 300, 1000)]),
    per_image=st.sampled_from([20, 100, 400]),
    wrapper=st.sampled_from([None, 'indices', 'filter', 'concat']),
    extra=st.sampled_from([{}, {'classwise': True}, {'sort_categories': True}, {'format_only': False}]),
)
def test_the_number_is_mmdetections_or_a_setting_is_refused(
    options, tmp_path, monkeypatch, names, kind, spelling, metric, limits, per_image, wrapper, extra
):
    cfg_options = with_classes(options, names)
    ann_file = cfg_options.pop('test_evaluator.ann_file')
    evaluator = {'type': kind, 'ann_file': ann_file, 'metric': metric, **extra}
    if limits:
        evaluator['proposal_nums'] = limits
    cfg_options['model.test_cfg.rcnn.max_per_img'] = per_image
    dataset = 'test_dataloader.dataset'
    if wrapper == 'indices':
        cfg_options[f'{dataset}.indices'] = 5
    elif wrapper == 'filter':
        cfg_options |= {f'{dataset}.test_mode': False, f'{dataset}.filter_cfg': {'filter_empty_gt': True}}
    cfg_options['test_evaluator'] = wrap(spelling, evaluator)
    if wrapper == 'concat':
        halves = Config.fromfile(STOCK).test_dataloader.dataset.to_dict()
        halves['metainfo'] = {'classes': list(names)}
        halves['data_root'] = cfg_options.pop(f'{dataset}.data_root')
        cfg_options.pop(f'{dataset}.metainfo.classes')
        parts = [{**halves, 'indices': [0, 1, 2]}, {**halves, 'indices': [3, 4, 5, 6, 7]}]
        cfg_options[dataset] = {'_delete_': True, 'type': 'ConcatDataset', 'datasets': parts}

    limit = sorted(limits or (100, 300, 1000))[2]  # pycocotools' of all but AP itself, which is at 100
    if limit != 100 and per_image > 100:
        cfg = Config.fromfile(STOCK)
        cfg.merge_from_dict(cfg_options)
        with pytest.raises(RunError, match=r'proposal_nums is .*set it to \(1, 10, 100\)'):
            check_test(cfg)
        return
    assert_equal_numbers(*both_numbers(cfg_options, tmp_path, monkeypatch, per_image))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'test_evaluator.iou_thrs': [0.5, 0.75]}, r'test_evaluator\.iou_thrs is \[0\.5, 0\.75\]'),
        ({'test_evaluator.proposal_nums': [1, 10, 50]}, r'test_evaluator\.proposal_nums is \(1, 10, 50\)'),
        ({'test_evaluator.proposal_nums': [100]}, r'test_evaluator\.proposal_nums is \(100,\)'),
        ({'model.test_cfg.rcnn.max_per_img': 300}, r'proposal_nums is \(100, 300, 1000\).* up to 300'),
        ({'model.test_cfg.rcnn.max_per_img': -1}, 'up to any number'),
        ({'test_evaluator.metric': ['bbox', 'proposal']}, r"test_evaluator\.metric has 'proposal'"),
        ({'model.roi_head.mask_head': None}, "test_evaluator.metric has 'segm', but"),
        ({'test_evaluator.ann_file': None}, 'test_evaluator has no ann_file'),
        ({'test_evaluator.ann_file': ['a.json', 'b.json']}, r"test_evaluator\.ann_file is \['a\.json'"),
        ({'test_evaluator.ann_file': 'a.json'}, 'test_evaluator.ann_file: .* a.json does not exist'),
        ({'test_evaluator.limit': 3}, "test_evaluator: .*unexpected keyword argument 'limit'"),
        ({'test_evaluator.type': 'LVISMetric'}, 'test_evaluator.type is LVISMetric'),
        ({'test_evaluator.type': Different}, 'test_evaluator.type is Different, which computes its own'),
        ({'test_evaluator.type': 'VOCMetric'}, 'no CocoMetric, only VOCMetric'),
        ({'test_evaluator.type': 'CocoMetrc'}, 'no CocoMetric, only CocoMetrc'),
        ({'test_evaluator': None}, 'has no test_evaluator'),
        ({'test_dataloader.dataset.ann_file': ['a', 'b']}, r"dataset\.ann_file is \['a', 'b'\]"),
        ({'train_dataloader.dataset.ann_file': ['a', 'b']}, r"dataset\.ann_file is \['a', 'b'\]"),
        ({'train_dataloader.dataset.data_root': None}, 'annotations/instances_train.json does not exist'),
        ({'test_dataloader.dataset.metainfo.classes': ['dog']}, 'metainfo.classes is dog, but .*no category'),
        ({'test_dataloader.dataset.metainfo.classes': 'star'}, "metainfo.classes is 'star'; expected names"),
        ({'test_dataloader.dataset.metainfo.classes': ['star', 'cross']}, 'num_classes is 5, but 2'),
        ({'test_dataloader.dataset.ann_file': ''}, r"test_dataloader\.dataset\.ann_file is ''; expected"),
        ({'train_dataloader.dataset.ann_file': 'annotations'}, r"train\S+ann_file is '\S+/annotations'; ex"),
        ({'train_dataloader.dataset.data_prefix': 'train'}, r"data_prefix is 'train'; expected dict\(img"),
        ({'test_dataloader.dataset': None}, r'has no test_dataloader\.dataset'),
        ({'test_dataloader.dataset.type': 'CocoDatset'}, r'dataset\.type: CocoDatset .*mean CocoDataset'),
    ],
)
def test_a_setting_that_cannot_be_tested_is_refused_before_the_training(
    options, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: pytest.fail('the training began'))
    with pytest.raises((RunError, DataError), match=message) as raised:
        train(STOCK, work_dir=tmp_path / 'run', cfg_options={**options, **changes})
    assert '\n' not in str(raised.value)
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('limit', [12, 120])
def test_max_dets_is_cocos_limit_of_all_figures(options, tmp_path, monkeypatch, limit):
    options = with_classes({**options, 'model.test_cfg.rcnn.max_per_img': 500}, NAMES[:2])
    _, record = both_numbers(options, tmp_path, monkeypatch, 400, max_dets=limit)
    assert record['max_dets'] == limit
    truth = COCO(record['ann_file'])
    for kind, name in record['predictions'].items():
        found = json.loads((tmp_path / name).read_text())
        found = [{key: d[key] for key in d if key != ('bbox' if kind == 'segm' else '')} for d in found]
        coco_eval = COCOeval(truth, truth.loadRes(found), kind)
        coco_eval.params.maxDets = [limit]
        coco_eval.evaluate()
        coco_eval.accumulate()
        precision = coco_eval.eval['precision'][..., 0]
        at_limit = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
        at_limit += [precision[..., area] for area in (1, 2, 3)]
        for metric, values in zip(ITEMS, at_limit, strict=True):
            values = values[values > -1]
            expected = values.mean() if values.size else -1
            assert record['metrics'][kind][metric] == pytest.approx(expected, abs=1e-12), (kind, metric)
    _, at_100 = both_numbers(
        {**options, 'test_evaluator.proposal_nums': [1, 10, 100]}, tmp_path, monkeypatch, 400
    )
    assert at_100['max_dets'] == 100
    assert at_100['metrics']['bbox']['AP'] != record['metrics']['bbox']['AP']


@pytest.mark.parametrize(
    ('max_dets', 'message'),
    [
        (300, r'max_dets is 300, but .* at most 100 .* set model\.test_cfg\.rcnn\.max_per_img to 300'),
        (0, 'max_dets is 0; expected 1 or more'),
    ],
)
def test_a_limit_that_would_have_no_effect_is_refused_before_the_training(
    options, tmp_path, monkeypatch, max_dets, message
):
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: pytest.fail('the training began'))
    with pytest.raises(RunError, match=message):
        train(
            STOCK,
            work_dir=tmp_path,
            cfg_options={**options, 'model.test_cfg.rcnn.max_per_img': 100},
            max_dets=max_dets,
        )


def test_a_test_at_another_limit_is_another_result(options, tmp_path, monkeypatch):
    both_numbers(options, tmp_path, monkeypatch)
    with pytest.raises(RunError, match='holds the result of another run'):
        run_test(STOCK, tmp_path / 'iter_1.pth', work_dir=tmp_path, cfg_options=options, max_dets=10)


def test_an_evaluator_with_its_metrics(options, tmp_path):
    ann_file = options['test_evaluator.ann_file']
    config = tmp_path / 'config.py'
    text = f"""_base_ = '{STOCK}'
data_root = '{options['test_dataloader.dataset.data_root']}'
test_dataloader = dict(dataset=dict(data_root=data_root))
test_evaluator = dict(_delete_=True, metrics=[dict(type='CocoMetric', ann_file='{ann_file}')])
"""
    config.write_text(text)
    evaluation = check_test(Config.fromfile(config))
    assert (evaluation.ann_file, evaluation.iou_types) == (ann_file, ['bbox'])
    config.write_text(text.replace('metrics=', "type='MultiDatasetsEvaluator', metrics="))
    with pytest.raises(RunError, match=r'test_evaluator\.type is MultiDatasetsEvaluator'):
        check_test(Config.fromfile(config))


def test_two_evaluations_are_refused(options, tmp_path, data):
    metric = {'type': 'CocoMetric', 'ann_file': options.pop('test_evaluator.ann_file')}
    other = {**metric, 'ann_file': str(data / 'annotations/instances_train.json')}
    with pytest.raises(RunError, match=r'test_evaluator\.0\.ann_file is .*test_evaluator\.1\.ann_file is'):
        train(STOCK, work_dir=tmp_path, cfg_options={**options, 'test_evaluator': [metric, other]})


def damage(data, folder, change, half='val'):
    path = data / 'annotations' / f'instances_{half}.json'
    annotations = json.loads(path.read_text())
    change(annotations)
    damaged = folder / 'damaged.json'
    damaged.write_text(json.dumps(annotations))
    return str(damaged)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: d['annotations'][0].update(segmentation=[[10, 10, 60, 50]]), 'has the segmentation'),
        (lambda d: d['annotations'][0].update(id=0), 'has id 0'),
        (lambda d: d['annotations'].append(d['annotations'][0]), 'has the id 1 of'),
        (lambda d: d['annotations'][0].pop('iscrowd'), 'lacks iscrowd'),
        (lambda d: d['images'].pop(), r'image 7, which .*damaged\.json does not have'),
        (lambda d: d['images'].clear(), 'has no images'),
        (lambda d: d.pop('categories'), 'not COCO annotations'),
    ],
)
def test_annotations_that_cannot_be_evaluated_are_named_before_the_training(
    data, options, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: pytest.fail('the training began'))
    options['test_evaluator.ann_file'] = damage(data, tmp_path, change)
    with pytest.raises((RunError, DataError), match=message):
        train(STOCK, work_dir=tmp_path / 'run', cfg_options=options)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: d['categories'].reverse(), 'its classes are ellipse, .*those of the test are cross, '),
        (lambda d: d['categories'].pop(), 'its classes are'),
        (lambda d: d['annotations'].clear(), 'has 8 images and 0 annotations'),
        (lambda d: d.pop('images'), 'has no images, annotations or categories'),
    ],
)
def test_training_data_with_other_labels_or_none_is_refused(data, options, tmp_path, change, message):
    """MMDetection numbers categories as the file lists them: the classes of the test would be swapped."""
    options['train_dataloader.dataset.ann_file'] = damage(data, tmp_path, change, 'train')
    with pytest.raises(RunError, match=rf'^train_dataloader\.dataset.*{message}'):
        train(STOCK, work_dir=tmp_path / 'run', cfg_options=options)


def test_an_image_of_the_test_that_is_not_there_is_named(data, options, tmp_path):
    changed = damage(data, tmp_path, lambda d: d['images'][3].update(file_name='gone.png'))
    options['test_dataloader.dataset.ann_file'] = changed
    with pytest.raises(RunError, match=r'test_dataloader\.dataset: the image \S+/val/gone\.png does not'):
        train(STOCK, work_dir=tmp_path / 'run', cfg_options=options)


def test_an_empty_annotation_file_is_named(options, tmp_path):
    (tmp_path / 'empty.json').touch()
    options['train_dataloader.dataset.ann_file'] = str(tmp_path / 'empty.json')
    with pytest.raises(RunError, match=r'train_dataloader\.dataset\.ann_file: \S+empty\.json is empty'):
        train(STOCK, work_dir=tmp_path / 'run', cfg_options=options)


@pytest.mark.parametrize('form', ['dict', 'list'])
def test_annotations_of_the_validation_are_looked_at_too(data, options, tmp_path, monkeypatch, form):
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: pytest.fail('the training began'))
    metric = {'type': 'CocoMetric', 'ann_file': str(data / 'gone.json')}
    options['val_evaluator'] = [metric] if form == 'list' else metric
    with pytest.raises(RunError, match=r'^val_evaluator\S*\.ann_file: .*gone\.json does not exist'):
        train(STOCK, work_dir=tmp_path, cfg_options=options)
    metric['ann_file'] = damage(data, tmp_path, lambda d: d['annotations'][0].pop('iscrowd'))
    with pytest.raises(DataError, match='lacks iscrowd'):
        train(STOCK, work_dir=tmp_path, cfg_options=options)


def test_a_new_style_config_whose_types_are_classes(options, tmp_path, monkeypatch):
    cfg = Config.fromfile(STOCK)
    cfg.merge_from_dict(options)
    text = cfg.pretty_text.replace("type='CocoMetric'", 'type=CocoMetric')
    text = text.replace("type='CocoDataset'", 'type=CocoDataset')
    imports = 'from mmdet.datasets import CocoDataset\nfrom mmdet.evaluation import CocoMetric\n'
    config = tmp_path / 'new.py'
    config.write_text(imports + text)
    assert isinstance(Config.fromfile(config).test_evaluator['type'], type)
    phases = []
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: phases.append(phase))
    train(config, work_dir=tmp_path / 'run')
    assert phases == ['train']
    torch.save({'state_dict': {}}, tmp_path / 'iter_1.pth')
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: (predict(cfg), torch.nn.Identity())[1])
    expected = predict(Config.fromfile(config))
    record = run_test(config, tmp_path / 'iter_1.pth', work_dir=tmp_path / 'run')
    assert_equal_numbers(expected, record)


def test_a_config_without_a_test_can_be_trained(options, tmp_path, monkeypatch):
    phases = []
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: phases.append(phase))
    del options['test_evaluator.ann_file'], options['test_dataloader.dataset.data_root']
    nothing = dict.fromkeys(TEST_SETTINGS)
    train(STOCK, work_dir=tmp_path, cfg_options={**options, **nothing})
    assert phases == ['train']


@pytest.mark.parametrize('where', ['a file', 'below a file'])
def test_an_output_folder_that_cannot_be_one(options, tmp_path, where):
    (tmp_path / 'file').touch()
    work_dir = tmp_path / 'file' if where == 'a file' else tmp_path / 'file' / 'run'
    with pytest.raises(RunError, match=rf'work_dir: {tmp_path}/file is not a folder'):
        train(STOCK, work_dir=work_dir, cfg_options=options)


@pytest.mark.parametrize(
    ('hook', 'count'),
    [
        ({'interval': 1, 'max_keep_ckpts': -1}, 91),
        ({'interval': 1, 'max_keep_ckpts': 70}, 71),
        ({'interval': 40, 'max_keep_ckpts': -1}, 3),
    ],
)
def test_a_disk_that_checkpoints_would_fill(options, tmp_path, monkeypatch, hook, count):
    monkeypatch.setattr(output.shutil, 'disk_usage', lambda path: SimpleNamespace(free=90_000_000))
    hook = {f'default_hooks.checkpoint.{key}': value for key, value in hook.items()}
    options = {**options, **hook, 'train_cfg.max_iters': 90}
    message = rf'work_dir: {count} checkpoints of about 0\.\d\d GB .* 0\.09 GB free'
    with pytest.raises(RunError, match=message):
        train(STOCK, work_dir=tmp_path, cfg_options=options)


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('model.roi_head.bbox_roi_extractor.type', 'AlignMxRoIExtractor', r'^model\.roi_head.*: AlignMxRoIE'),
        ('optim_wrapper.optimizer.type', 'AdamWx', r'^optim_wrapper\.optimizer\.type: AdamWx is not reg'),
        ('load_from', 'gone.pth', r'the checkpoint gone\.pth does not exist'),
    ],
)
def test_what_a_training_starts_from_is_looked_at_before_it(options, tmp_path, option, value, message):
    with pytest.raises(RunError, match=message):
        train(STOCK, work_dir=tmp_path / 'run', cfg_options={**options, option: value})
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('sort_categories', [False, True])
def test_a_check_reads_the_annotations_once_for_the_metric(options, monkeypatch, sort_categories):
    cfg = Config.fromfile(STOCK)
    cfg.merge_from_dict({**options, 'test_evaluator.sort_categories': sort_categories})
    metric = CocoMetric(ann_file=options['test_evaluator.ann_file'], sort_categories=sort_categories)
    expected = metric._coco_api.get_cat_ids(cat_names=NAMES)
    monkeypatch.setattr('mmdet.evaluation.metrics.coco_metric.COCO', None)  # the metric's own reader
    assert check_test(cfg).category_ids == expected
