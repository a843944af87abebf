"""A ResNet at 4 bits in a loop of your own: learned scales, a schedule, checkpoints. Kill it and run it again: it goes on.

python examples/resnet_own_loop.py      # some minutes
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import truequant as tq
from truequant.demo import load_mnist, resnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of quantization-aware training")
    parser.add_argument("--test", type=int, default=10_000, help="test images to use")
    parser.add_argument("--checkpoint", type=Path, default=Path("resnet.ckpt"))
    options = parser.parse_args()

    torch.manual_seed(0)
    mnist = load_mnist()
    images, labels = mnist.train_images, mnist.train_labels
    qat = tq.prepare(
        resnet(), images[:8], tq.QConfig.preset("w4a4").with_rules(tq.Rule("classifier", weight=tq.QuantScheme(tq.types.int8)))
    )
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat, weight_decay=1e-4), 0.03, momentum=0.9)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    schedule = tq.training.QATSchedule(freeze_batchnorm_at=options.steps * 3 // 4, freeze_ranges_at=options.steps * 3 // 4)
    start = 0
    if options.checkpoint.exists():
        found = tq.load_checkpoint(options.checkpoint, model=qat, optimizer=optimizer, scheduler=decay)
        schedule.load_state_dict(found.extra)
        start = found.step
        print(f"goes on at step {start}")
    else:
        tq.calibrate(qat, images[:1000].split(100))

    for step in range(start, options.steps):
        qat.train()
        schedule.step(qat)
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        loss = F.cross_entropy(qat(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        decay.step()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            tq.save_checkpoint(
                options.checkpoint, model=qat, optimizer=optimizer, scheduler=decay, step=step + 1, extra=schedule.state_dict()
            )
            print(f"step {step + 1}: loss {loss.item():.3f}")

    qat.eval()
    int8 = tq.convert(qat)
    test = mnist.test_images[: options.test].split(500)
    right = int((torch.cat([int8(x) for x in test]).argmax(1) == mnist.test_labels[: options.test]).sum())
    print(f"Int8 program of 4-bit weights and activations: {100 * right / options.test:.2f} %, {int8.size_bytes:,} bytes")
    print(tq.verify(qat, int8, test[:2]))


if __name__ == "__main__":
    main()
