"""One task as a picture: what is learned from, what is asked, and what was answered wrongly."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from torch import Tensor

from lifelong import randomness
from lifelong.meta.engine import answers
from lifelong.meta.episodes import Source
from lifelong.training.meta_loop import MetaTraining

_MOST = 10  # classes, support samples and queries of a class that are shown
_FRAME = 2  # pixels around each picture
_WRONG = (213, 94, 0)


def example(training: MetaTraining, source: Source) -> str | None:
    """Return a PNG as base64: a row for each class, support samples and then queries; None where inputs are no
    pictures.

    Queries that are answered wrongly after all steps of adaptation have an orange frame.
    """
    episodes = source.draw(1, randomness.generator(training.seed, "example"))
    if episodes.support.dim() != 5 or episodes.support.shape[2] not in (1, 3):
        return None
    *_, last = answers(training.algorithm, training.problem, training.engine, training.meta, training.buffers, episodes)
    wrong = last.argmax(2) != episodes.query_targets
    support = _tiles(episodes.support[0], torch.zeros(episodes.support.shape[1], dtype=torch.bool))
    query = _tiles(episodes.query[0], wrong[0])
    ways = int(episodes.query_targets.max()) + 1
    rows = [[*_row(support, ways, way), _gap(support), *_row(query, ways, way)] for way in range(min(ways, _MOST))]
    return _png(np.concatenate([np.concatenate(row, 1) for row in rows]))


def _tiles(pictures: Tensor, wrong: Tensor) -> list[np.ndarray]:
    light = pictures.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    made = []
    for picture, bad in zip(light.permute(0, 2, 3, 1).numpy(), wrong.tolist(), strict=True):
        height, width = picture.shape[:2]
        tile = np.full((height + 2 * _FRAME, width + 2 * _FRAME, 3), _WRONG if bad else (255, 255, 255), np.uint8)
        tile[_FRAME:-_FRAME, _FRAME:-_FRAME] = picture
        made.append(tile)
    return made


def _row(tiles: list[np.ndarray], ways: int, way: int) -> list[np.ndarray]:
    each = len(tiles) // ways
    return tiles[way * each : (way + 1) * each][:_MOST]


def _gap(tiles: list[np.ndarray]) -> np.ndarray:
    return np.full((tiles[0].shape[0], 8, 3), 255, np.uint8)


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
