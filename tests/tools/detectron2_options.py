"""What the small trainings of the Detectron2 tests have in common, as options of the two kinds of configs."""

import logging

YAML_OPTIONS = {
    'SOLVER.IMS_PER_BATCH': 2,
    'SOLVER.WARMUP_ITERS': 0,
    'DATALOADER.NUM_WORKERS': 0,
    'INPUT.MIN_SIZE_TRAIN': '(64,)',
    'INPUT.MIN_SIZE_TEST': 64,
    'MODEL.RPN.POST_NMS_TOPK_TEST': 20,
    'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 0.0,
    'SEED': 0,
}
LAZY_OPTIONS = {
    'dataloader.train.total_batch_size': 2,
    'dataloader.train.num_workers': 0,
    'dataloader.test.num_workers': 0,
    'model.proposal_generator.post_nms_topk': [150, 20],
    'model.roi_heads.box_predictor.test_score_thresh': 0.0,
}


def forget_loggers():
    """Those of earlier runs, which write to what pytest had in place of stdout and has closed."""
    from detectron2.utils.logger import setup_logger

    for name in ('detectron2', 'fvcore'):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()
