"""Measure whether the data pipeline keeps up with training: images/s of both, and their ratio.

    python scripts/benchmark_data.py --config FILE [--set a.b=value ...] [--workers 1 4 8] [--seconds 10]

For each number of workers one line of JSON: the pipeline alone; a training step alone, fed the same batch
over and over; the ratio of the two (above 1 the pipeline is faster than the step consumes); and both together,
as in training.
"""

import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rpg_ms.config import OneLineParser, add_shared_arguments, load_config  # noqa: E402
from rpg_ms.errors import UserError, front_door  # noqa: E402

WARM_UP = 3  # batches: compiling, starting workers
ENDLESS = 10**5  # steps


def main():
    parser = OneLineParser(description=__doc__.splitlines()[0])
    add_shared_arguments(parser)
    parser.add_argument("--workers", type=int, nargs="+", metavar="N", help="instead of data.workers")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of each measurement")
    args = parser.parse_args()
    if not args.seconds > 0:
        raise UserError(f"--seconds: {args.seconds} is not > 0")
    configs = [
        load_config(
            args.config, args.set + extra, seed=args.seed, device_target=args.device_target, output_dir=args.output_dir
        )
        for extra in ([[f"data.workers={n}"] for n in args.workers] if args.workers else [[]])
    ]

    from rpg_ms.tasks import create_task
    from rpg_ms.training import build, device
    from rpg_ms.training.distributed import ALONE

    config = configs[0]
    target = device.set_up(config)
    task = create_task(config, ALONE)
    network, sparsified = build.build_network(config, task)
    step, _ = build.build_train_step(config, task, network, sparsified.layers, target, ALONE)
    batch = next(iter(task.train_batches(0, ENDLESS)))
    step_alone = measure(itertools.repeat(batch), step, args.seconds)
    for config in configs:
        task = create_task(config, ALONE)
        pipeline_alone = measure(task.train_batches(0, ENDLESS), lambda *arrays: None, args.seconds)
        together = measure(task.train_batches(0, ENDLESS), step, args.seconds)
        rates = {"pipeline": pipeline_alone, "step": step_alone, "together": together}
        rates = {f"{name}_images_per_s": round(config.train.batch_size * rate, 1) for name, rate in rates.items()}
        print(
            json.dumps(
                {
                    "model": config.model.name,
                    "data": config.data.name,
                    "device": target,
                    "workers": config.data.workers,
                    **rates,
                    "ratio": round(pipeline_alone / step_alone, 2),
                }
            )
        )


def measure(batches, consume, seconds):
    """Batches a second, after a warm-up."""
    batches = iter(batches)
    for batch in itertools.islice(batches, WARM_UP):
        finish(consume(*batch.values()))
    count, started = 0, time.perf_counter()
    for batch in batches:
        result = consume(*batch.values())
        count += 1
        if time.perf_counter() - started > seconds:
            break
    finish(result)
    return count / (time.perf_counter() - started)


def finish(loss):
    """Wait for the device."""
    if loss is not None:
        loss.asnumpy()


if __name__ == "__main__":
    front_door(main)
