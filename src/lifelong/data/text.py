"""Texts to tokens: the column that holds them, and the tokenizer that a model brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lifelong.errors import InputError, closest

_COLUMNS = ("text", "sentence", "review", "content", "document", "body")


class Tokenizer(Protocol):
    """What turns texts into `[texts, length]` int64 tokens, -1 where a text has fewer."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that its tokens depend on."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Reading:
    """How texts are read.

    Args:
        column: the one that holds them.
        tokenizer: makes tokens of them.
    """

    column: str
    tokenizer: Tokenizer

    def tokens(self, cells: Sequence[Any], where: str) -> Tensor:
        """Return the tokens of `cells`.

        Raises:
            InputError: a cell that holds no text; `where` names the table.
        """
        for index, cell in enumerate(cells):
            if not isinstance(cell, str):
                raise InputError(f"{where}, row {index}: column {self.column!r} holds {cell!r}, and text is needed")
        return self.tokenizer(cells)


def text_column(columns: Sequence[str], texts: Sequence[str], wanted: str | None, where: str) -> str | None:
    """Return the column of `texts` to read, or None where there is none.

    Args:
        columns: all that the table has.
        texts: those of them that hold text and are not the label.
        wanted: the user's word, or None for the usual names, or the only one.
        where: names the table in errors.

    Raises:
        InputError: no such column, one that holds no text, or several to choose from.
    """
    if wanted is not None:
        if wanted not in columns:
            raise InputError(
                f"{where} has no column {wanted!r}{closest(wanted, columns) or f': it has {list(columns)}'}"
            )
        if wanted not in texts:
            raise InputError(f"{where}: column {wanted!r} holds no text{f', but {texts[0]!r} does' if texts else ''}")
        return wanted
    usual = next((each for each in _COLUMNS if each in texts), None)
    if usual is None and len(texts) > 1:
        raise InputError(f"{where} has text in several columns ({', '.join(texts)}): name one with text")
    return usual or next(iter(texts), None)
