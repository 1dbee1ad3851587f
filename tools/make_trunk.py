"""Makes the trunk that the demo's trials start from, configs/trunks/r18-c4_shapes.pth: `make trunk`.

A RetinaNet is trained, which reads no RoI, so that the trunk has not grown used to any extractor. Its
images are of another seed than the demo's, so that the demo tests on images that the trunk has not seen.

The file holds the backbone twice, as `state_dict` with the names of MMDetection and as `model` with those of
Detectron2. Both share their tensors, but for the first convolution, whose input is RGB in the one and BGR in
the other.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader

from roi_plugins.cli import run
from roi_plugins.datasets import ShapesSpec, generate_shapes
from roi_plugins.files import atomic_write
from roi_plugins.integrations.checkpoints import weights_only
from roi_plugins.integrations.mmdet.checkpoints import allow_mmengine_checkpoints

ROOT = Path(__file__).resolve().parents[1]
TRUNK = ROOT / 'configs/trunks/r18-c4_shapes.pth'
CONFIG = ROOT / 'configs/mmdet/shapes/retinanet_r18-c4.py'
SHAPES = ShapesSpec(num_train=4000, num_val=1, seed=1)
STEPS = 2000
WARMUP = 100  # the config's own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/trunk'))
    parser.add_argument('--out', type=Path, default=TRUNK, help='default: the trunk of the package')
    args = parser.parse_args()
    if status := train(args.work_dir):
        return status
    allow_mmengine_checkpoints()
    with weights_only():
        checkpoint = CheckpointLoader.load_checkpoint(str(args.work_dir / f'iter_{STEPS}.pth'), 'cpu')
    write_trunk(checkpoint['state_dict'], args.out)
    print(f'written to {args.out}')
    return 0


def train(work_dir: Path) -> int:
    """Returns the exit status of the training, which goes on where an earlier call has ended."""
    data = generate_shapes(work_dir / 'shapes', SHAPES)
    options = {
        'train_dataloader.dataset.data_root': f'{data}/',
        'test_dataloader.dataset.data_root': f'{data}/',
        'test_evaluator.ann_file': data / 'annotations/instances_val.json',
        'train_cfg.max_iters': STEPS,
        'param_scheduler.1.end': STEPS,
        'param_scheduler.1.T_max': STEPS - WARMUP,
    }
    pairs = [f'{key}={value}' for key, value in options.items()]
    return run('train', [str(CONFIG), '--work-dir', str(work_dir), '--resume', '--cfg-options', *pairs])


def write_trunk(detector: dict[str, torch.Tensor], path: Path) -> None:
    """Writes the backbone of a detector of MMDetection, in half precision, for both frameworks."""
    prefix = 'backbone.'
    mmdet = {
        name.removeprefix(prefix): value.half()
        for name, value in detector.items()
        if name.startswith(prefix) and value.is_floating_point()  # num_batches_tracked, which is not used
    }
    detectron2 = {prefix + detectron2_name(name): value for name, value in mmdet.items()}
    detectron2[f'{prefix}stem.conv1.weight'] = mmdet['conv1.weight'].flip(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through an open file, as torch would write the file's temporary name into it.
    with atomic_write(path) as aside, open(aside, 'wb') as file:
        torch.save({'state_dict': mmdet, 'model': detectron2}, file)


def detectron2_name(name: str) -> str:
    """Returns Detectron2's name of a weight of a ResNet: res2.0.conv1.norm.bias for layer1.0.bn1.bias."""
    name = re.sub(r'^(conv1|bn1)', r'stem.\1', name)
    name = re.sub(r'^layer(\d)', lambda stage: f'res{int(stage[1]) + 1}', name)
    name = name.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
    return re.sub(r'bn(\d)', r'conv\1.norm', name)


if __name__ == '__main__':
    sys.exit(main())
