"""CIFAR-10, classes 0 and 1 and then 2 and 3, from a network that knows ImageNet: plain training beside MagMax.

    LIFELONG_DATA=folder/of/data python examples/cifar10_pairs.py

The network is not told which pair a photograph is of: it answers over all four classes. MagMax keeps, number by number,
the largest change that either pair asked for.
"""

from __future__ import annotations

import argparse
from typing import Any

import lifelong


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Run both methods, print how well each answers after each pair, and return the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500, help="training samples of each pair (default 500)")
    parser.add_argument("--data", default="cifar10:0-3", help="data of four classes (default cifar10:0-3)")
    parser.add_argument("--model", default="efficientnet-lite0", help="or hf:FOLDER of another image encoder")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side that images are resized to")
    chosen = parser.parse_args(words)
    results = lifelong.compare(
        ["naive", "magmax"],
        stream="split",
        data=chosen.data,
        tasks=2,
        scenario="class",
        train_samples=chosen.samples,
        test_samples=chosen.samples,
        model={"name": chosen.model, "image_size": chosen.image_size, "fix_batch_norm": True},
        head_rows="class-means",  # outputs that stay: the mean features of each class
        optimizer="adamw",
        lr=1e-4,
        batch_size=32,
    )
    for result in results:
        _, after_first, after_second = result["accuracy"]
        print(
            f"{result['method']:7} first pair {after_first[0]:.0%} when it was learned, {after_second[0]:.0%} at the "
            f"end; second pair {after_second[1]:.0%}"
        )
    return results


if __name__ == "__main__":
    main()
