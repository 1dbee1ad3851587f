"""Plans: what they expand to, and that a mistake in one is named before anything runs."""

from pathlib import Path

import pytest
import yaml

from roi_plugins.ablation.plan import PlanError, check_cfg_options, load_plan
from roi_plugins.extractors.presets import parse_preset
from roi_plugins.integrations.base import Inputs

PLAN = {
    'name': 'small',
    'work_dir': 'work_dirs/small',
    'baseline': 'align-avg',
    'configs': {
        'mask': {'framework': 'mmdet', 'path': '../configs/mask_{extractor}.py'},
        'faster': {'framework': 'mmdet', 'path': '../configs/faster_{extractor}.py'},
    },
    'extractors': ['align-max', 'align-avg'],
    'seeds': [3, 0],
    'cfg_options': {'train_cfg.max_iters': 100},
}


@pytest.fixture
def write_plan(tmp_path):
    for folder in ('plans', 'configs'):
        (tmp_path / folder).mkdir()
    for config in ('mask', 'faster'):
        for extractor in PLAN['extractors']:
            (tmp_path / 'configs' / f'{config}_{extractor}.py').touch()

    def write(**changes) -> Path:
        path = tmp_path / 'plans' / 'plan.yaml'
        path.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
        return path

    return write


def test_trials_are_ordered_by_seed_and_named(write_plan, tmp_path):
    plan = load_plan(write_plan())
    assert [trial.name for trial in plan.trials] == [
        'mask.align-max.seed3',
        'mask.align-avg.seed3',
        'faster.align-max.seed3',
        'faster.align-avg.seed3',
        'mask.align-max.seed0',
        'mask.align-avg.seed0',
        'faster.align-max.seed0',
        'faster.align-avg.seed0',
    ]
    assert plan.trials[2].config == tmp_path / 'configs' / 'faster_align-max.py'
    assert plan.trials[2].framework == 'mmdet'
    assert (plan.name, plan.baseline) == ('small', 'align-avg')
    assert plan.work_dir == Path('work_dirs/small')
    assert all(trial.cfg_options == {'train_cfg.max_iters': 100} for trial in plan.trials)


def test_data_and_modules_of_ones_own(write_plan, tmp_path):
    """Those of a config win; files are relative to the plan, modules have names."""
    configs = {**PLAN['configs']}
    configs['faster'] = {**configs['faster'], 'test_data': ['b.json', '../b'], 'imports': ['/x/y.py']}
    plan = load_plan(
        write_plan(
            configs=configs,
            imports=['my.data', 'heads.py'],
            train_data=['train.json', 'images'],
            test_data=['a.json', 'a'],
            max_dets=300,
        )
    )
    folder = tmp_path / 'plans'
    mask, _, faster, *_ = plan.trials
    assert mask.inputs == Inputs(
        imports=('my.data', str(folder / 'heads.py')),
        train_data=(str(folder / 'train.json'), str(folder / 'images')),
        test_data=(str(folder / 'a.json'), str(folder / 'a')),
        max_dets=300,
    )
    assert faster.inputs == Inputs(
        imports=('/x/y.py',),
        train_data=mask.inputs.train_data,
        test_data=(str(folder / 'b.json'), str(tmp_path / 'b')),
        max_dets=300,
    )
    assert faster.inputs.arguments == [
        *('--import', '/x/y.py'),
        *('--train-data', *faster.inputs.train_data),
        *('--test-data', *faster.inputs.test_data),
        *('--max-dets', '300'),
    ]
    assert Inputs().arguments == []


def swapped(write_plan, config, extractors, **changes):
    return write_plan(configs={'one': config}, extractors=extractors, baseline='align-avg', **changes)


def test_one_config_whose_extractors_are_swapped(write_plan, tmp_path):
    row = {'name': 'max-4', 'type': 'AlignMax', 'sampling_ratio': 4}
    config = {'path': '../configs/mask_align-avg.py', 'heads': ['bbox']}
    plan = load_plan(swapped(write_plan, config, ['stock', 'align-avg', 'AlignMax', row]))
    assert {trial.config for trial in plan.trials} == {tmp_path / 'configs' / 'mask_align-avg.py'}
    assert {trial.framework for trial in plan.trials} == {'mmdet'}
    stock, avg, bare, four = plan.trials[:4]
    assert [trial.extractor for trial in plan.trials[:4]] == ['stock', 'align-avg', 'AlignMax', 'max-4']
    assert stock.inputs.arguments == ['--extractor', 'stock', '--heads', 'bbox']
    assert avg.inputs.arguments == ['--extractor', 'align-avg', '--heads', 'bbox']
    assert parse_preset(bare.inputs.extractor).options == {}
    assert parse_preset(four.inputs.extractor).options == {'sampling_ratio': 4}
    assert parse_preset(four.inputs.extractor).name == 'max-4'


def test_a_row_may_have_a_config_of_its_own(write_plan, tmp_path):
    config = {'path': '../configs/mask_align-avg.py', 'heads': ['bbox']}
    config['row_paths'] = {'r-fcn': '../configs/faster_align-avg.py'}
    plan = load_plan(swapped(write_plan, config, ['r-fcn', 'align-avg'], seeds=[0]))
    own, avg = plan.trials
    assert (own.name, own.framework) == ('one.r-fcn.seed0', 'mmdet')
    # Taken as it is: neither swapped nor asked for its heads.
    assert own.config == tmp_path / 'configs/faster_align-avg.py' and own.inputs.arguments == []
    assert avg.config == tmp_path / 'configs/mask_align-avg.py'
    assert avg.inputs.arguments == ['--extractor', 'align-avg', '--heads', 'bbox']


@pytest.mark.parametrize(
    ('row_paths', 'message'),
    [
        (['r-fcn'], r"row_paths is \['r-fcn'\]; expected a mapping of rows to the configs"),
        ({'rfcn': 'x.py'}, "row_paths has 'rfcn', which is not one of the extractors align-avg, r-fcn, four"),
        ({'r-fcn': 3}, r'row_paths\.r-fcn is 3; expected a string'),
        ({'r-fcn': 'x.py'}, r'row_paths\.r-fcn: there is no config \S+x\.py'),
        ({'r-fcn': 'other.yaml'}, r'row_paths\.r-fcn: \S+ is of detectron2, the other rows are of mmdet'),
        ({'r-fcn': 'broken.py'}, r'row_paths\.r-fcn: the config \S+broken\.py cannot be read'),
        ({'four': 'x.py'}, r'row_paths\.four: this row is written in place'),
        ({}, r"no extractor is named 'r-fcn'.* name it in configs\.one\.row_paths"),
    ],
)
def test_a_mistake_in_the_configs_of_rows_is_named(write_plan, tmp_path, row_paths, message):
    (tmp_path / 'plans/other.yaml').touch()
    (tmp_path / 'plans/broken.py').write_text('model = [')
    config = {'path': '../configs/mask_align-avg.py', 'row_paths': row_paths}
    rows = ['align-avg', 'r-fcn', {'name': 'four', 'type': 'AlignMax', 'sampling_ratio': 4}]
    with pytest.raises(PlanError, match=message):
        load_plan(swapped(write_plan, config, rows))


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ('align-mox', "extractors: no extractor is named 'align-mox'; there are the rows stock, .*align-max"),
        ({'name': 'x', 'type': 'Max'}, r"extractors: x: type is 'Max'; expected one of QuantizedPool, "),
        ({'name': 'x', 'type': 'AlignMax', 'region': 'bins'}, "AlignMax has no option 'region'; Quant"),
        ({'name': 'x'}, r'extractors: x is \{\}; expected one such as \{type: AlignMax'),
    ],
)
def test_a_row_that_does_not_exist_is_named(write_plan, row, message):
    config = {'framework': 'mmdet', 'path': '../configs/mask_align-avg.py'}
    with pytest.raises(PlanError, match=message):
        load_plan(swapped(write_plan, config, ['align-avg', row]))


def test_a_config_that_both_frameworks_could_read(write_plan, tmp_path):
    (tmp_path / 'configs/mask_align-avg.py').write_text('from my_helpers import model')
    config = {'path': '../configs/mask_align-avg.py'}
    with pytest.raises(PlanError, match=r'may be of mmdet or detectron2; set configs\.one\.framework'):
        load_plan(swapped(write_plan, config, ['align-avg']))
    plan = load_plan(swapped(write_plan, {**config, 'framework': 'detectron2'}, ['align-avg']))
    assert plan.trials[0].framework == 'detectron2'


@pytest.mark.parametrize(
    ('path', 'framework'),
    [
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'mmdet'),
        ('COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml', 'detectron2'),
        ('new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py', 'detectron2'),
    ],
)
def test_configs_of_a_model_zoo(write_plan, path, framework):
    pytest.importorskip(framework)
    (trial, *_) = load_plan(swapped(write_plan, {'path': path}, ['align-avg'])).trials
    assert trial.framework == framework and trial.config.is_file()
    assert str(trial.config).endswith(path.rpartition('::')[2])


def test_config_paths_are_relative_to_the_plan(write_plan, tmp_path, monkeypatch):
    path = write_plan()
    monkeypatch.chdir(tmp_path)
    assert load_plan(path.relative_to(tmp_path)).trials[0].config == Path('configs/mask_align-max.py')


def test_a_configs_own_options_win_over_the_plans(write_plan):
    own = {'train_cfg.max_iters': 7, 'optim_wrapper.optimizer.lr': 0.1}
    configs = {**PLAN['configs'], 'mask': {**PLAN['configs']['mask'], 'cfg_options': own}}
    common = {'train_cfg.max_iters': 100, 'randomness.deterministic': True}
    plan = load_plan(write_plan(configs=configs, cfg_options=common))
    for trial in plan.trials:
        expected = {**common, **own} if trial.config_name == 'mask' else common
        assert trial.cfg_options == expected


ONE_CONFIG = PLAN['configs']['mask']
FASTER = PLAN['configs']['faster']


def test_each_checkpoint_is_tested_with_each_extractor(write_plan):
    checkpoints = {'align-avg': '../small/mask.align-avg.seed{seed}', 'stock': '/data/{seed}.pth'}
    configs = {'mask': {**ONE_CONFIG, 'checkpoints': checkpoints}, 'faster': FASTER}
    trials = load_plan(write_plan(configs=configs)).trials
    assert [(trial.name, trial.checkpoint) for trial in trials if trial.seed == 3] == [
        ('mask.align-avg.align-max.seed3', Path('../small/mask.align-avg.seed3')),
        ('mask.align-avg.align-avg.seed3', Path('../small/mask.align-avg.seed3')),
        ('mask.stock.align-max.seed3', Path('/data/3.pth')),
        ('mask.stock.align-avg.seed3', Path('/data/3.pth')),
        ('faster.align-max.seed3', None),
        ('faster.align-avg.seed3', None),
    ]
    assert [trial.trained_with for trial in trials[:5]] == [*['align-avg'] * 2, *['stock'] * 2, None]


def test_the_number_of_gpus(write_plan):
    assert load_plan(write_plan()).num_gpus == 1
    assert load_plan(write_plan(num_gpus=8)).num_gpus == 8


def test_what_the_verdicts_are_about(write_plan):
    plan = load_plan(write_plan())
    assert (plan.primary_metric, plan.margin) == (None, 0)
    plan = load_plan(write_plan(primary_metric='segm/AP75', margin=0.5))
    assert (plan.primary_metric, plan.margin) == ('segm/AP75', 0.005)


def checkpoints(value):
    return config(checkpoints=value)


def config(**changes):
    return {'configs': {'a': {**ONE_CONFIG, **changes}}}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seed': [0]}, r"unknown key 'seed'; known are name, .*seeds"),
        ({'name': 3}, 'name is 3; expected a string'),
        ({'baseline': 'stock'}, "baseline is 'stock'; expected one of .* align-max, align-avg"),
        ({'extractors': 'align-avg'}, 'extractors is .*expected a list of names'),
        ({'extractors': ['a.b']}, 'extractors is .*expected a list of names'),
        ({'extractors': ['align-avg', 'align-avg']}, 'each may be there only once'),
        ({'seeds': [-1]}, 'seeds is .*integers >= 0'),
        ({'seeds': [True]}, 'seeds is .*integers >= 0'),
        ({'seeds': []}, 'seeds is .*integers >= 0'),
        ({'max_dets': 0}, 'max_dets is 0; expected an integer >= 1'),
        ({'max_dets': [1, 10, 100]}, r'max_dets is \[1, 10, 100\]; expected an integer'),
        ({'primary_metric': 'AP'}, "primary_metric is 'AP'; expected one of bbox/AP, bbox/AP50"),
        ({'primary_metric': ['bbox/AP']}, r"primary_metric is \['bbox/AP'\]; expected one of bbox/AP"),
        ({'margin': -0.1}, 'margin is -0.1; expected a number of points from 0 to 100'),
        ({'margin': True}, 'margin is True; expected a number of points'),
        ({'margin': float('nan')}, 'margin is nan; expected a number of points'),
        ({'margin': '1'}, "margin is '1'; expected a number of points"),
        ({'imports': 'my.data'}, "imports is 'my.data'; expected a list of modules"),
        ({'train_data': ['a.json']}, r"train_data is \['a.json'\]; expected two paths"),
        ({'test_data': {'a': 'b'}}, r'test_data is .*expected two paths, \[ANNOTATIONS, IMAGES\]'),
        ({'configs': {}}, 'configs is .*expected a mapping'),
        ({'configs': {'a b': ONE_CONFIG}}, "configs: 'a b' is not a name"),
        ({'configs': {'a': {'framework': 'mmdet'}}}, r'configs\.a lacks path'),
        ({'configs': {'a': {**ONE_CONFIG, 'amp': 1}}}, r"configs\.a has the unknown key 'amp'"),
        ({'configs': {'a': {**ONE_CONFIG, 'framework': 'x'}}}, r"is 'x'; expected one of mmdet"),
        ({'configs': {'a': {**ONE_CONFIG, 'path': 'b.py'}}}, r'path: there is no config \S+b\.py: it is '),
        ({'configs': {'a': {**ONE_CONFIG, 'heads': 'bbox'}}}, r"heads is 'bbox'; expected a list of heads"),
        ({'configs': {'a': {**ONE_CONFIG, 'heads': ['bbox']}}}, r'heads is .*path has \{extractor\}'),
        (config(row_paths={'align-avg': 'x.py'}), r'row_paths: the path has \{extractor\}'),
        ({'extractors': [{'type': 'AlignMax'}]}, r'or of rows \{name: NAME, type: TYPE'),
        ({'extractors': ['align-avg', {'name': 'x', 'type': 'AlignMax'}]}, 'row x is written in place, but'),
        ({'configs': {'a': {**ONE_CONFIG, 'path': '{extractor}.py'}}}, 'there is no config'),
        (checkpoints({}), r'configs\.a\.checkpoints is {}; expected a mapping'),
        (checkpoints('a.pth'), r"checkpoints is 'a\.pth'; expected a mapping"),
        (checkpoints({'a b': 'a{seed}.pth'}), r"checkpoints: 'a b' is not a name"),
        (checkpoints({'avg': 3}), r'checkpoints\.avg is 3; expected the path'),
        (checkpoints({'avg': 'https://a/{seed}.pth'}), r'expected the path .* on this machine'),
        (checkpoints({'avg': 'a.pth'}), r'the same checkpoint for every seed.*put {seed}'),
        ({'num_gpus': 0}, 'num_gpus is 0; expected an integer >= 1'),
        ({'num_gpus': 'all'}, "num_gpus is 'all'; expected an integer >= 1"),
        ({'cfg_options': {'train_cfg': {'max_iters': 1}}}, r'e\.g\. train_cfg\.max_iters'),
        ({'cfg_options': [1]}, 'cfg_options is .*expected a mapping'),
        (
            {'configs': {'a': ONE_CONFIG, 'b': {**ONE_CONFIG, 'framework': 'detectron2'}}},
            r'cfg_options: got train_cfg\.max_iters for all trials.*detectron2, mmdet.*configs\.NAME\.cfg',
        ),
        (
            {'configs': {'a': {**ONE_CONFIG, 'cfg_options': {'train': {'max_iter': 1}}}}},
            r'configs\.a\.cfg_options: train is a mapping.*train\.max_iter',
        ),
    ],
)
def test_a_mistake_is_named_with_the_file(write_plan, changes, message):
    path = write_plan(**changes)
    with pytest.raises(PlanError, match=message) as raised:
        load_plan(path)
    assert str(path) in str(raised.value)


def test_a_missing_key_is_named(write_plan):
    path = write_plan()
    path.write_text(yaml.safe_dump({key: PLAN[key] for key in PLAN if key != 'seeds'}))
    with pytest.raises(PlanError, match='the plan lacks seeds'):
        load_plan(path)


def test_what_is_not_a_plan_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r'no\.yaml: the plan does not exist'):
        load_plan(tmp_path / 'no.yaml')
    path = tmp_path / 'plan.yaml'
    path.write_text('name: [')
    with pytest.raises(PlanError, match='the plan cannot be read'):
        load_plan(path)
    path.write_text('!!python/object/apply:os.system ["touch ' + str(tmp_path / 'ran') + '"]')
    with pytest.raises(PlanError, match='the plan cannot be read'):
        load_plan(path)
    assert not (tmp_path / 'ran').exists()
    path.write_text('just text')
    with pytest.raises(PlanError, match="the plan is 'just text'; expected a mapping"):
        load_plan(path)


def test_option_keys_are_strings():
    assert check_cfg_options({'a.b': [1, 2]}) == {'a.b': [1, 2]}
    with pytest.raises(PlanError, match='the key 1 is not a string'):
        check_cfg_options({1: 2})


def test_a_path_from_a_linked_folder_is_that_of_the_shell(tmp_path):
    """`..` of a link is where the link leads, for the kernel that opens the file."""
    for folder, text in (('real/cfg', 'real'), ('cfg', 'other')):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / 'a.py').write_text(text)
    (tmp_path / 'real' / 'plans').mkdir()
    (tmp_path / 'plans').symlink_to(tmp_path / 'real' / 'plans')
    plan = {
        'name': 'x',
        'work_dir': 'w',
        'baseline': 'a',
        'configs': {'c': {'framework': 'mmdet', 'path': '../cfg/{extractor}.py'}},
        'extractors': ['a'],
        'seeds': [0],
    }
    (tmp_path / 'plans' / 'plan.yaml').write_text(yaml.safe_dump(plan))
    assert load_plan(tmp_path / 'plans' / 'plan.yaml').trials[0].config.read_text() == 'real'
    assert load_plan(tmp_path / 'real' / 'plans' / 'plan.yaml').trials[0].config.read_text() == 'real'
