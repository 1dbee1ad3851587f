"""Evaluation of a Detectron2 model: COCO predictions and ``metrics.json``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from roi_plugins.evaluation.coco_files import FIELDS
from roi_plugins.files import write_json
from roi_plugins.run_record import PREDICTION_FILES, write_run

from ..results import partial_predictions, replace_predictions
from .inspect import describe_extractors
from .run import Run


class Predictions(DatasetEvaluator):
    """Gathers the predictions of all processes in COCO's format; it does not compute AP.

    Args:
        dataset: the name of the test dataset.
    """

    def __init__(self, dataset: str):
        ids = MetadataCatalog.get(dataset).get('thing_dataset_id_to_contiguous_id', {})
        self._category_ids = {contiguous: id_ for id_, contiguous in ids.items()}

    def reset(self) -> None:
        self._found: list[dict] = []
        self._iou_types = {'bbox'}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output['instances'].to('cpu')
            # Masks and keypoints get a file even if none is predicted.
            for iou_type, field in (('segm', 'pred_masks'), ('keypoints', 'pred_keypoints')):
                if instances.has(field):
                    self._iou_types.add(iou_type)
            for found in instances_to_coco_json(instances, image['image_id']):
                label = found['category_id']
                found['category_id'] = self._category_ids.get(label, label)
                self._found.append(found)

    def evaluate(self) -> dict[str, list[dict]] | None:
        """The predictions, as lists in COCO's format under ``bbox``, ``segm`` and ``keypoints``.

        Keypoints have their box with them, whose area COCOEvaluator takes for theirs.

        None in processes other than the first.
        """
        gathered = comm.gather((self._found, self._iou_types))
        if not comm.is_main_process():
            return None
        found = list(itertools.chain.from_iterable(found for found, _ in gathered))
        iou_types = set().union(*(iou_types for _, iou_types in gathered))
        keys = {t: {'image_id', 'category_id', 'score', FIELDS[t]} for t in FIELDS if t in iou_types}
        if 'keypoints' in keys:
            keys['keypoints'].add('bbox')
        return {
            iou_type: [{key: result[key] for key in result if key in own} for result in found]
            for iou_type, own in keys.items()
        }


def evaluate(
    run: Run, model: torch.nn.Module, *, config: str, checkpoint: str, command: Sequence[str]
) -> dict[str, Any] | None:
    """Evaluates a model, and writes predictions and ``metrics.json`` to the output folder.

    Args:
        run: the run.
        model: the model.
        config: path of the config, as the user gave it.
        checkpoint: path of the evaluated weights.
        command: the command of the run.

    Returns:
        The content of ``metrics.json``; None in processes other than the first.
    """
    predictions = predict(run, model)
    if not comm.is_main_process():
        return None
    partial = partial_predictions(run.output_dir)
    partial.mkdir(parents=True)
    for iou_type, results in predictions.items():
        write_json(partial / PREDICTION_FILES[iou_type], results)
    replace_predictions(run.output_dir, partial, predictions)
    return write_run(
        run.output_dir,
        framework='detectron2',
        config=config,
        checkpoint=checkpoint,
        ann_file=ann_file_of(run),
        command=command,
        max_dets=run.max_dets,
        sigmas=run.sigmas,
        image_dir=MetadataCatalog.get(run.test_datasets[0]).get('image_root'),
        extractors=describe_extractors(model),
    )


def predict(run: Run, model: torch.nn.Module) -> dict[str, list[dict]]:
    """The predictions of a model on the test set, see :class:`Predictions`; empty except in the first
    process.

    Args:
        run: the run.
        model: the model.
    """
    (dataset,) = run.test_datasets
    loader = run.test_loader()  # reads the dataset first, which gives Predictions its category ids
    return inference_on_dataset(model, loader, Predictions(dataset))


def ann_file_of(run: Run) -> str:
    """The path of the annotations of the test set."""
    (dataset,) = run.test_datasets
    return MetadataCatalog.get(dataset).json_file
