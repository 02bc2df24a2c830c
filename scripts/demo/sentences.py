"""Sentences as the sentence encoder takes them: BERT's WordPiece over the model's own vocabulary."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")


class Tokenizer:
    """Turns sentences into token ids; ``vocabulary`` has one token a line, its line number is its id."""

    def __init__(self, vocabulary: Path) -> None:
        self._ids = {token: number for number, token in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}

    def __call__(self, sentences: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask``, INT64 [N,L], padded to the longest sentence."""
        rows = [[self._ids["[CLS]"], *self._tokens(sentence), self._ids["[SEP]"]] for sentence in sentences]
        ids = np.full((len(rows), max(map(len, rows))), self._ids["[PAD]"], np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def _tokens(self, sentence: str) -> list[int]:
        plain = unicodedata.normalize("NFD", sentence.lower())
        plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
        return [number for word in _WORD.findall(plain) for number in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        pieces: list[int] = []
        start = 0
        while start < len(word):
            # the longest piece that the vocabulary knows; the unknown token where even one letter is not in it
            for stop in range(len(word), start, -1):
                number = self._ids.get(("##" if start else "") + word[start:stop])
                if number is not None:
                    pieces.append(number)
                    start = stop
                    break
            else:
                return [self._ids["[UNK]"]]
        return pieces
