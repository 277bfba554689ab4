"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, push it to the disk, and give it its name; `path` is never half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        # The system does not say which file the disk was too full for.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON as `write_file` does; a number that is not finite is refused, as readers refuse it."""
    write_file(path, json.dumps(value, indent=1, allow_nan=False).encode())
