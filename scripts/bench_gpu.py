"""Time training steps of a model on a GPU against PyTorch, in one run.

    python scripts/bench_gpu.py "GPT 4x128, T 128, batch 8, AdamW"

The model is trained in float32 by disttrain, by PyTorch eagerly and under ``torch.compile``, from the same weights on
the same batches; if the losses do not agree the row is an error. Times are wall time per step, the GPU waited for at
the end of many. ``--rows FILE`` appends what was measured as lines of JSON, as soon as it is known.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from bench_training import MODELS, gpt, images, make_step, mlp, tokens

MODELS |= {
    "MLP 784-1024-1024-10, batch 8192, Adam": (mlp, images, (8192, 784), "Adam", {"lr": 1e-3}),
    "GPT 12x768, T 512, batch 4, AdamW": (
        lambda nn: gpt(nn, vocabulary=50304, width=768, heads=12, layers=12, length=512),
        tokens, (4, 512), "AdamW", {"lr": 3e-4},
    ),
}  # fmt: skip
ROWS = [
    "MLP 784-1024-1024-10, batch 8192, Adam",
    "GPT 12x768, T 512, batch 4, AdamW",
    "LeNet 32x32, batch 32, SGD",
    "LSTM 100-50x2, T 20, batch 10, SGD",
]
"""What disttrain should be able to train on a GPU today: in float32."""
AGREE = 2e-3
"""How far apart losses may be."""


def first_lines(error):
    return "\n".join(f"{type(error).__name__}: {error}".splitlines()[:6])


def model(row, tell, stand_in):
    device, steps = ("cpu", 5) if stand_in else ("cuda", 50)
    sides = {"disttrain": ("disttrain", False)}
    if importlib.util.find_spec("torch") is not None:
        sides |= {"PyTorch eager": ("torch", False)}
        sides |= {} if stand_in else {"torch.compile": ("torch", True)}
    expected = None
    for side, (library, compiled) in sides.items():
        try:
            step = make_step(library, row, 1, 0, device, compiled)
            losses = [step().item() for _ in range(5)]
            times = []
            for _ in range(3):
                start = time.perf_counter()
                for _ in range(steps):
                    loss = step()
                loss.item()  # waits for the GPU
                times.append((time.perf_counter() - start) / steps)
        except Exception as error:  # the other sides are still to be measured
            tell(name=row, side=side, error=first_lines(error))
            continue
        found = {"ms": statistics.median(times) * 1e3, "losses": losses}
        expected = expected or losses
        if not np.allclose(losses, expected, AGREE, AGREE):
            found["error"] = f"losses {losses} differ from those of the first side, {expected}"
        tell(name=row, side=side, **found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(MODELS), help="of the model")
    parser.add_argument("--rows", type=Path, help="append what was measured to this file")
    parser.add_argument(
        "--stand-in", action="store_true", help=argparse.SUPPRESS
    )  # NumPy for CuPy, for tests
    args = parser.parse_args()
    wrong = 0

    def tell(**row):
        nonlocal wrong
        wrong += "error" in row
        print(
            *(f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items() if k != "losses"), flush=True
        )
        if args.rows:
            with open(args.rows, "a") as file:
                file.write(json.dumps(row) + "\n")

    model(args.name, tell, args.stand_in)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
