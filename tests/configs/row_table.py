"""What each row gives an extractor, whatever the framework and the detector: its type and options."""

ROWS = {
    'stock': ('', {}),  # the framework's own
    'quantized-pool': ('QuantizedPool', dict(region='round', reduction='max')),
    'roi-warp-max': ('RoIWarp', dict(region='round', reduction='max', sampling_ratio=2)),
    'roi-warp-avg': ('RoIWarp', dict(region='round', reduction='avg', sampling_ratio=2)),
    'align-max': ('AlignMax', dict(sampling_ratio=2, aligned=True)),
    'align-avg': ('AlignAvg', dict(sampling_ratio=2, aligned=True)),
    'align-avg-unaligned': ('AlignAvg', dict(sampling_ratio=2, aligned=False)),
    'adaptive': ('AdaptiveSampling', dict(reduction='avg', min_samples=1, max_samples=None, aligned=True)),
    'precise': ('Precise', dict(aligned=False)),
    'precise-aligned': ('Precise', dict(aligned=True)),
    'random-sampling': ('RandomSampling', dict(sampling_ratio=2, reduction='avg', aligned=True)),
    'deformable': ('Deformable', dict(sampling_ratio=2, aligned=True)),
    'content-adaptive': ('ContentAdaptive', dict(sampling_ratio=2, aligned=True)),
    'all-levels': ('AllLevels', dict(aggregation='sum', sampling_ratio=2, aligned=True)),
}
FPN_ROWS = ('stock', 'quantized-pool', 'align-max', 'align-avg', 'adaptive')
TABLE_ROWS = ('stock', 'quantized-pool', 'roi-warp-max', 'roi-warp-avg', 'align-max', 'align-avg')
TABLE_ROWS += ('align-avg-unaligned',)
DEMO_ROWS = ('quantized-pool', 'align-max', 'align-avg', 'adaptive')

# Those of which every config is trained a step; the others differ from them in options of the op alone.
LEARNING = (
    'stock',
    'align-max',
    'precise-aligned',
    'random-sampling',
    'deformable',
    'content-adaptive',
    'all-levels',
)
