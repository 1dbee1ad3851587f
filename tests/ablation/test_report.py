"""The page of a comparison: what it says, and in a real browser, where there is one, how it behaves."""

import html
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from roi_plugins.ablation.compare import compare
from roi_plugins.ablation.extractor_cost import Cost, Costs
from roi_plugins.ablation.report.images import (
    Detections,
    as_rgb,
    data_uri,
    find_picture,
    folders_beside,
    most_different,
    outline,
)
from roi_plugins.ablation.report.page import write_report
from roi_plugins.ablation.report.plots import plot_differences
from roi_plugins.ablation.results import find_runs
from roi_plugins.datasets import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import evaluate
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.files import write_json
from roi_plugins.run_record import write_run
from roi_plugins.settings import write_settings

HOSTILE = '<img src=x onerror="document.title=1">&amp;'
CHROMIUM = shutil.which('chromium')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    return generate_shapes(root, ShapesSpec(num_train=1, num_val=6, image_size=64))


@pytest.fixture(scope='module')
def ann_file(data):
    """With a class whose name is markup."""
    path = data / 'annotations/instances_val.json'
    annotations = json.loads(path.read_text())
    for category in annotations['categories']:
        category['name'] += HOSTILE
    write_json(path, annotations)
    return path


@pytest.fixture(scope='module')
def make_run(tmp_path_factory, ann_file):
    """Makes runs whose boxes and masks are those of the ground truth, moved right by some pixels."""
    root = tmp_path_factory.mktemp('runs')
    coco = load_annotations(ann_file)

    def make(name, shift, extractor, seed=0, only_image=None):
        run_dir = root / name
        run_dir.mkdir()
        boxes, masks = [], []
        for annotation in coco.dataset['annotations']:
            moved = shift if only_image in (None, annotation['image_id']) else 0
            common = {key: annotation[key] for key in ('image_id', 'category_id')}
            common['score'] = 0.9 - annotation['id'] / 1000
            x, y, w, h = annotation['bbox']
            boxes.append({**common, 'bbox': [x + moved, y, w, h]})
            mask = np.roll(coco.annToMask(annotation), round(moved), axis=1)
            masks.append({**common, 'segmentation': encode(mask)})
        write_json(run_dir / 'predictions.bbox.json', boxes)
        write_json(run_dir / 'predictions.segm.json', masks)
        model = {'roi_head': {'bbox_roi_extractor': {'type': HOSTILE, 'aligned': name}}}
        write_settings(run_dir, {'lr': shift, 'model': model, 'train': HOSTILE}, trains=True)
        log = run_dir / '20260101_000000/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(f'{{"step": {i}, "loss": {shift + 1 / i}}}\n' for i in range(1, 50)))
        trial = {'config_name': 'tiny', 'extractor': extractor, 'seed': seed, 'state': 'finished'}
        commands = [['python', 'train.py', '--name', 'a b']]
        write_json(run_dir / 'trial.json', {'format': 1, **trial, 'started': '', 'commands': commands})
        write_run(
            run_dir,
            framework='mmdet',
            config='tiny.py',
            checkpoint='x',
            ann_file=ann_file,
            command=[],
            extractors={'roi_head.bbox_roi_extractor': {'type': HOSTILE, 'sampling_ratio': 2, 'depth': 10}},
        )
        return run_dir

    return make


def encode(mask):
    from pycocotools import mask as masks

    rle = masks.encode(np.asfortranarray(mask))
    return {'size': list(map(int, rle['size'])), 'counts': rle['counts'].decode()}


@pytest.fixture(scope='module')
def comparison(make_run):
    runs = [
        make_run('base0', 1, 'align'),
        make_run('base1', 2, 'align', seed=1),
        make_run('pool0', 6, HOSTILE),
        make_run('pool1', 9, HOSTILE, seed=1),
    ]
    return compare(runs, baseline='align', resamples=100, details=True)


@pytest.fixture(scope='module')
def page(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'report.html'
    cost = Cost('tiny', HOSTILE, 512, 0.01, 0.02, 0.3, 2**20, 0, 10**6, 10**9)
    costs = Costs('Measured on a machine.', [cost], ['a problem'])
    write_report(comparison, path, ['python', 'tools/compare.py', 'a b'], costs=costs)
    return path


def without_scripts(page):
    return re.sub(r'<script.*?</script>', '', page.read_text(), flags=re.DOTALL)


def test_the_page_has_everything_and_nothing_of_it_is_markup(page, comparison):
    assert HOSTILE not in page.read_text()
    text = without_scripts(page)
    shown = html.unescape(re.sub('</?b>', '', text))
    for expected in (
        'Box AP, difference to align',
        'Mask AP over IoU',
        'Boundary AP over IoU',
        'Box AP50 lost to each kind of error',
        'Box AP, difference to align, by class',
        f'ellipse{HOSTILE}',
        'Config: tiny',
        'Differences to align',
        'AP over cost',
        'Measured on a machine.',
        'GFLOPs of the heads',
        'Learning curves',
        ': all runs.',
        'problem: a problem',
        "python tools/compare.py 'a b'",
        "python train.py --name 'a b'",
        'confounded lr: 1 → 6',
        'extractor model.roi_head.bbox_roi_extractor.aligned: base0 → pool0',
        'confounded: tiny: align: its runs differ in more than the extractor',
        'lr: 1 → 6; lr: 2 → 9',
        'Extractors as they were built',
        'depth=10',
        '6 images; AP x 100',
    ):
        assert expected in shown, expected
    # What it loads is in it: addresses are of data or of a place in the page.
    addresses = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert addresses
    assert all(address.startswith(('#', 'data:image/jpeg')) for address in addresses)
    assert re.findall(r'<script[^>]*src=', page.read_text()) == []


def test_the_answer_comes_first_and_details_are_folded_away(page):
    text = without_scripts(page)
    ids = ('results', 'differences', 'cost', 'learning', 'details', 'curves', 'images', 'settings', 'runs')
    places = [text.index(f'id="{name}"') for name in ids]
    assert places == sorted(places)
    assert text.index('id="results"') < text.index('Problems and notes') < text.index('id="differences"')
    assert re.findall(r'<details id="(\w+)">', text) == ['tables', 'curves', 'images']
    # A setting that differs is said once for all the runs in which it does.
    assert text.count('<b>confounded</b> lr: 1 → 6 <span class="dim">') == 1


def test_a_damaged_log_is_a_note_and_a_page_without_baseline_has_no_differences(make_run, tmp_path):
    run = make_run('damaged', 3, 'align')
    with next(run.glob('*/vis_data/scalars.json')).open('a') as log:
        log.write('{"step": 50, "lo')
    write_report(compare([run], resamples=0), tmp_path / 'report.html', [])
    text = without_scripts(tmp_path / 'report.html')
    assert '1 of 50 lines are damaged' in text
    assert 'id="learning"' in text
    assert 'id="differences"' not in text
    assert 'id="cost"' not in text


def test_an_image_is_embedded_once_however_often_it_is_shown(page):
    text = without_scripts(page)
    uris = re.findall(r'href="data:([^"]*)"', text)
    shown = re.findall(r'<use href="#image-(\d+)"', text)
    assert len(uris) == len(set(uris)) == len(set(shown)) < len(shown)


def test_the_margin_is_drawn_for_the_primary_metric_alone(make_run):
    runs = [make_run(f'margin{shift}', shift, f'by{shift}') for shift in (1, 3)]
    comparison = compare(runs, baseline='by1', resamples=20, margin=0.05)
    bands = {plot['title']: len(plot['figure']['layout']['shapes']) for plot in plot_differences(comparison)}
    note = ' (one seed: these networks only)'
    assert bands == {f'Box AP{note}': 1, f'Mask AP{note}': 0}


def test_a_page_without_pictures_seeds_or_run_directories(comparison, ann_file, make_run, tmp_path):
    """Bare files of predictions, and annotations whose images are not there."""
    run = make_run('bare', 3, 'align')
    files = []
    for name in ('first', 'second'):
        files.append(tmp_path / f'{name}.bbox.json')
        shutil.copy(run / 'predictions.bbox.json', files[-1])
    moved = json.loads(files[1].read_text())
    for prediction in moved:
        prediction['bbox'][0] += 3
    write_json(files[1], moved)
    alone = tmp_path / 'annotations.json'
    shutil.copy(ann_file, alone)
    write_report(compare(files, alone), tmp_path / 'new' / 'report.html', ['x'])
    text = without_scripts(tmp_path / 'new' / 'report.html')
    assert 'its file was not found' in text
    assert 'second and first, boxes' in text
    assert '<use' not in text


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_the_image_on_which_two_runs_differ_comes_first(make_run, ann_file, iou_type):
    coco = load_annotations(ann_file)
    image_id = coco.dataset['annotations'][-1]['image_id']
    runs = [make_run(f'same-{iou_type}', 0, 'a'), make_run(f'one-{iou_type}', 4, 'b', only_image=image_id)]
    both = [Detections(coco, run, iou_type) for run in find_runs(runs).runs]
    (difference,) = most_different(coco, *both, count=4)
    assert difference.image['id'] == image_id
    one = json.loads(ann_file.read_text())
    one['images'] = [difference.image]
    one['annotations'] = [a for a in one['annotations'] if a['image_id'] == image_id]
    expected = []
    for run in runs:
        name = f'predictions.{iou_type}.json'
        predictions = [p for p in json.loads((run / name).read_text()) if p['image_id'] == image_id]
        path = run / 'one.json'
        write_json(path, one)
        expected.append(evaluate(path, predictions, iou_type)['AP'])
    assert [panel.ap for panel in difference.panels] == pytest.approx(expected, abs=1e-12)
    assert [shape.kind for shape in difference.panels[0].shapes] == ['right'] * len(one['annotations'])
    assert 'wrong' in [shape.kind for shape in difference.panels[1].shapes]
    assert len(difference.objects) == len(one['annotations'])


def test_a_false_alarm_lowers_the_ap_of_its_image_as_in_coco(make_run, ann_file):
    coco = load_annotations(ann_file)
    run = make_run('alarm', 2, 'a')
    path = run / 'predictions.bbox.json'
    predictions = json.loads(path.read_text())
    predictions.append({**predictions[0], 'score': 0.99, 'bbox': [0, 0, 5, 5]})
    write_json(path, predictions)
    image_id = predictions[0]['image_id']
    one = json.loads(ann_file.read_text())
    one['images'] = [coco.imgs[image_id]]
    one['annotations'] = [a for a in one['annotations'] if a['image_id'] == image_id]
    write_json(run / 'one.json', one)
    found = [p for p in predictions if p['image_id'] == image_id]
    ap = Detections(coco, find_runs([run]).runs[0], 'bbox').aps[image_id]
    assert ap == pytest.approx(evaluate(run / 'one.json', found, 'bbox')['AP'], abs=1e-12)
    assert 0 < ap < 1


def test_outlines_are_those_of_box_and_mask(ann_file):
    coco = load_annotations(ann_file)
    image = next(iter(coco.imgs.values()))
    mask = np.zeros((image['height'], image['width']), np.uint8)
    mask[0:7, 3:10] = 1
    annotation = {'image_id': image['id'], 'bbox': [3, 0, 7, 7], 'segmentation': encode(mask)}
    assert outline(coco, annotation, 'bbox') == 'M3.0 0.0h7.0v7.0h-7.0z'
    numbers = np.array(re.findall(r'(-?[\d.]+) (-?[\d.]+)', outline(coco, annotation, 'segm')), float)
    assert numbers.min(axis=0).tolist() == [3, 0]
    assert numbers.max(axis=0).tolist() == [10, 7]
    # The pixel (5, 6) has its centre at (5.5, 6.5). An object has no cross where it has no keypoint.
    points = {'keypoints': [5, 6, 2, 9, 9, 0]}
    assert outline(coco, points, 'keypoints') == 'M2.5 6.5h6m-3 -3v6'
    assert outline(coco, {**points, 'score': 1.0}, 'keypoints').count('v6') == 2


def test_pictures_of_runs_on_some_of_the_classes_are_found(make_run, ann_file, tmp_path):
    """Their annotations are a reduced copy in the run, with no images beside it."""
    runs = [make_run(f'some{shift}', shift, f'some{shift}') for shift in (1, 8)]
    categories = [category['id'] for category in load_annotations(ann_file).dataset['categories']][:4]
    for run in runs:
        for name in ('predictions.bbox.json', 'predictions.segm.json'):
            found = json.loads((run / name).read_text())
            write_json(run / name, [entry for entry in found if entry['category_id'] in categories])
        record = write_run(
            run, framework='mmdet', config='tiny.py', checkpoint='x', ann_file=ann_file, command=[],
            category_ids=categories, image_dir=ann_file.parent.parent / 'val',
        )  # fmt: skip
        assert record['ann_file'] == str(run / 'annotations.json')
    write_report(compare(runs, resamples=0), tmp_path / 'report.html', [])
    page = (tmp_path / 'report.html').read_text()
    assert 'data:image/jpeg' in page
    assert 'its file was not found' not in page


def test_pictures_are_found_in_cocos_layout_and_shrunk(tmp_path):
    ann_file = tmp_path / 'annotations/instances_val2017.json'
    picture = tmp_path / 'val2017/a.png'
    picture.parent.mkdir()
    Image.new('RGB', (2000, 1000), 'red').save(picture)
    folders = folders_beside(ann_file)
    assert find_picture({'file_name': 'a.png'}, folders) == picture
    assert find_picture({'file_name': 'b.png'}, folders) is None
    assert find_picture({'file_name': '../val2017/a.png'}, folders) is None
    assert find_picture({}, folders) is None
    assert len(data_uri(picture)) < 20_000


@pytest.fixture
def browse(page):
    """Opens the page in Chromium; fails for any error, and for any request but that of the page."""
    if CHROMIUM is None:
        pytest.skip('there is no chromium here: the page is not tried in a browser')
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        problems = []

        def browse(scheme='light', width=1000):
            tab = browser.new_page(color_scheme=scheme, viewport={'width': width, 'height': 800})
            tab.on('pageerror', lambda error: problems.append(str(error)))
            tab.on('console', lambda message: problems.append(message.text))
            tab.on('request', lambda request: asked.append(request.url))
            asked = []
            tab.goto(page.as_uri())
            tab.wait_for_selector('.curve .main-svg')
            assert [url for url in asked if not url.startswith('data:')] == [page.as_uri()]
            return tab

        yield browse
        browser.close()
        assert problems == []


def column(tab, number):
    trials = tab.locator('table').first.locator(f'tbody td:nth-child({number})')
    return trials.all_text_contents()


def test_tables_are_sorted_with_the_keyboard(browse):
    tab = browse()
    assert tab.title() == 'Extractors on instances_val.json'  # no markup of a name has run
    tab.keyboard.press('Tab')
    assert tab.evaluate('document.activeElement.textContent') == 'Skip to the results'
    assert tab.locator('.skip').bounding_box()['x'] >= 0
    tab.keyboard.press('Enter')
    assert tab.evaluate('document.activeElement.id') == 'results'
    names = [head.strip() for head in tab.locator('table').first.locator('th').all_text_contents()]
    number = names.index('AP') + 1
    for _ in range(1 + number):  # over the table's frame, which scrolls
        tab.keyboard.press('Tab')
    assert tab.evaluate('document.activeElement.textContent') == 'AP'
    for key, direction in (('Enter', 'descending'), ('Space', 'ascending')):
        tab.keyboard.press(key)
        values = [float(trial.split()[0]) for trial in column(tab, number)]
        assert values == sorted(values, reverse=direction == 'descending')
        assert len(set(values)) == 2
        heads = tab.locator('table').first.locator('th[aria-sort]')
        assert [head.get_attribute('aria-sort') for head in heads.all()] == [direction]
    tab.locator('#tables > summary').press('Enter')
    intervals = tab.get_by_role('region', name='Box AP, 95% interval', exact=True)
    intervals.get_by_role('button', name='AP', exact=True).click()
    heads = [head.strip() for head in intervals.locator('th').all_text_contents()]
    trials = intervals.locator(f'tbody td:nth-child({heads.index("AP") + 1})').all_text_contents()
    lows = [float(trial.strip('[').split(',')[0]) for trial in trials]
    assert lows == sorted(lows, reverse=True)
    tab.locator('table').first.get_by_role('button', name='Extractor').click()
    assert column(tab, names.index('Extractor') + 1) == [HOSTILE, 'align']


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_is_readable_in_light_and_dark(browse, scheme):
    tab = browse(scheme)
    page_colour = luminance(tab.evaluate('getComputedStyle(document.body).backgroundColor'))
    assert (page_colour > 0.5) == (scheme == 'light')
    for selector in ('body', '.dim', 'a', '.problem', 'td', 'figcaption', '.settings li'):
        colour = tab.locator(selector).first.evaluate('e => getComputedStyle(e).color')
        assert contrast(luminance(colour), page_colour) >= 4.5, selector  # WCAG AA
    fill = tab.locator('.curve .xtick text').first.evaluate('e => getComputedStyle(e).fill')
    assert contrast(luminance(fill), page_colour) >= 4.5


def test_curves_and_images_are_drawn(browse):
    tab = browse()
    expect = pytest.importorskip('playwright.sync_api').expect
    rows = tab.locator('#differences .curve').first.locator('.ytick text')
    assert [row.split('\u200b')[0][:4] for row in rows.all_text_contents()] == [HOSTILE[:4]]
    assert tab.locator('#differences .curve').first.locator('.points path').count() >= 1
    assert tab.locator('#cost .curve').first.locator('.points path').count() >= 1
    learned = tab.locator('#learning .curve').first.locator('.lines .js-line')
    assert learned.count() == 4 + 2  # each training, and the mean of each extractor
    curves = tab.locator('#curves .curve')
    assert curves.locator('.main-svg').count() == 0  # what is folded away has no size to draw to
    tab.locator('#curves > summary').click()
    expect(curves.first.locator('.main-svg').first).to_be_visible()
    assert curves.count() == 3  # boxes, masks, boundaries
    assert curves.first.locator('.main-svg').first.bounding_box()['width'] > 400
    names = curves.first.locator('.legendtext').all_text_contents()
    assert names == ['align', HOSTILE]
    assert curves.first.locator('.lines .js-line').count() == 4  # each with its interval
    tab.locator('#images > summary').click()
    panel = tab.locator('figure svg').first
    panel.scroll_into_view_if_needed()
    picture = Image.open(io.BytesIO(panel.screenshot())).convert('RGB')
    # The picture, not the grey behind it, nor only the outlines.
    assert len(picture.getcolors(maxcolors=2**24)) > 1000
    # The text of the curves follows a change while the page is open.
    tab.emulate_media(color_scheme='dark')
    text = tab.evaluate('getComputedStyle(document.body).color')
    for plot in ('#differences', '#curves'):
        expect(tab.locator(f'{plot} .curve .xtick text').first).to_have_css('fill', text)


def test_nothing_is_wider_than_a_phone(browse):
    tab = browse(width=400)
    for summary in tab.locator('summary').all():
        if summary.is_visible():
            summary.click()
    assert tab.evaluate('document.documentElement.scrollWidth') == 400


def luminance(colour):
    """WCAG's relative luminance of ``rgb(r, g, b)``."""
    rgb = np.array(re.findall(r'[\d.]+', colour)[:3], float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_a_16_bit_picture_is_seen_as_opencv_reads_it(tmp_path):
    cv2 = pytest.importorskip('cv2')  # with which MMDetection reads
    values = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'grey.png')
    with Image.open(tmp_path / 'grey.png') as file:
        shown = np.asarray(as_rgb(file))
    np.testing.assert_array_equal(shown, cv2.imread(str(tmp_path / 'grey.png')))
