"""Pictures to tensors, with PIL on a pool of threads (decoding releases the interpreter's lock)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import InputError


def decode(pictures: Sequence[bytes | Path], names: Sequence[str], size: int | None) -> Tensor:
    """Return `[pictures, channels, height, width]` uint8; grey pictures have one channel, others three.

    Args:
        pictures: encoded files, or paths of such.
        names: what errors call each picture.
        size: resize to so many pixels a side, or None to keep theirs.

    Raises:
        InputError: a file that is no picture, or pictures of unlike size and no `size`.
    """

    def one(index: int) -> NDArray[np.uint8]:
        return _decode(pictures[index], names[index], size)

    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(one, range(len(pictures)), chunksize=256))
    first = arrays[0].shape
    if any(array.shape[2] != first[2] for array in arrays):
        arrays = [np.repeat(array, 3, 2) if array.shape[2] == 1 else array for array in arrays]
        first = arrays[0].shape
    for name, array in zip(names, arrays, strict=True):
        if array.shape != first:
            raise InputError(
                f"picture {name} has {array.shape[1]}x{array.shape[0]} pixels and {names[0]} {first[1]}x{first[0]}: "
                "set image_size to resize them all"
            )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _decode(picture: bytes | Path, name: str, size: int | None) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            image: Any = opened.convert("L" if opened.mode in ("1", "L", "I;16") else "RGB")
    # PIL calls a damaged PNG a SyntaxError.
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"picture {name} cannot be decoded: {error}") from error
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array
