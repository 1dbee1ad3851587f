import numpy as np
import pytest
from sweeps import Sweep

from roi_plugins.evaluation import write_json, write_run

LABELS = {'config_name': 'mask_rcnn', 'extractor': 'align-avg', 'seed': 0}


@pytest.fixture
def make_run(tmp_path):
    """Makes finished runs on ten objects of which none is large; a higher error is a lower AP."""
    images = [{'id': i, 'height': 100, 'width': 100} for i in range(1, 6)]
    annotations = [
        {
            'id': i + 1,
            'image_id': 1 + i // 2,
            'category_id': 1,
            'bbox': [50 * (i % 2), 0, 40, 20 + 5 * i],
            'area': 40 * (20 + 5 * i),
            'iscrowd': 0,
        }
        for i in range(10)
    ]
    ann_file = tmp_path / 'annotations.json'
    categories = [{'id': 1, 'name': 'thing'}]
    write_json(
        ann_file, {'images': images, 'annotations': annotations, 'categories': categories}
    )

    def make(name, error=0.1, **cell):
        rng = np.random.default_rng(cell.get('seed', 0))
        run_dir = tmp_path / name
        run_dir.mkdir(parents=True)
        shift = rng.normal(0, error, 10) * 40
        predictions = [
            {
                'image_id': annotation['image_id'],
                'category_id': 1,
                'score': float(rng.random()),
                'bbox': [annotation['bbox'][0] + float(dx), *annotation['bbox'][1:]],
            }
            for annotation, dx in zip(annotations, shift, strict=True)
        ]
        write_json(run_dir / 'predictions.bbox.json', predictions)
        if cell:
            record = {'format': 1, **LABELS, 'state': 'finished', 'started': '', **cell}
            write_json(run_dir / 'cell.json', record)
        write_run(
            run_dir, framework='mmdet', config='c', checkpoint='x', ann_file=ann_file, command=[]
        )
        return run_dir

    return make


@pytest.fixture
def sweep(tmp_path):
    sweep = Sweep(tmp_path)
    yield sweep
    sweep.end()
