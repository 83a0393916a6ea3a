"""Text into tokens, by the ``tokenizers`` library (``pip install disttrain[text]``), and into files of tokens."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.data.files import StrPath
from disttrain.errors import FileDamaged
from disttrain.whole_files import replacing

if TYPE_CHECKING:
    import tokenizers

_LINES = 1000
"""Lines that are tokenized at a time."""


class TextTokenizer:
    """A trained tokenizer; made by :func:`train_bpe`, :func:`train_wordpiece` or :meth:`load`."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self.inner = inner
        """The tokenizer of the ``tokenizers`` library, for all that it can do."""

    @classmethod
    def load(cls, path: StrPath) -> TextTokenizer:
        """Read a ``tokenizer.json``, as :meth:`save` and Hugging Face's libraries write it.

        Raises:
            FileDamaged: it is not one.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls(_library().Tokenizer.from_str(text))
        except Exception as error:  # the library raises nothing more special
            raise FileDamaged(f"{path} is no tokenizer.json: {error}") from error

    def save(self, path: StrPath) -> None:
        """Write a ``tokenizer.json``, whole or not at all."""
        with replacing(path) as file:
            file.write(self.inner.to_str().encode())

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.inner.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self.inner.decode(list(tokens)))

    def token(self, text: str) -> int:
        """Return the number of one token, a special one say.

        Raises:
            KeyError: there is no such token.
        """
        number = self.inner.token_to_id(text)
        if number is None:
            raise KeyError(f"there is no token {text!r} among {len(self)}")
        return int(number)

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self.inner.get_vocab_size())


def train_bpe(
    texts: Iterable[str] | StrPath, vocab_size: int, special_tokens: Sequence[str] = ("<|endoftext|>",)
) -> TextTokenizer:
    """Return a byte-level BPE tokenizer, as GPT-2's (Radford et al. 2019): any text comes back as it was.

    Args:
        texts: what to learn from: texts, or a file of them.
        vocab_size: tokens at most, the 256 bytes and the special ones among them.
        special_tokens: get the first numbers.

    Raises:
        ValueError: ``vocab_size`` has no room for the bytes and the special tokens.
    """
    if vocab_size < 256 + len(special_tokens):
        raise ValueError(
            f"a byte-level BPE needs at least 256 + {len(special_tokens)} tokens, got vocab_size {vocab_size}"
        )
    library = _library()
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_lines(texts), trainer)
    return TextTokenizer(inner)


def train_wordpiece(texts: Iterable[str] | StrPath, vocab_size: int, lowercase: bool = True) -> TextTokenizer:
    """Return a WordPiece tokenizer, as BERT's (Devlin et al. 2019), with its special tokens.

    Args:
        texts: what to learn from: texts, or a file of them.
        vocab_size: tokens at most.
        lowercase: fold case and accents.
    """
    library = _library()
    inner = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    inner.decoder = library.decoders.WordPiece()
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    inner.train_from_iterator(_lines(texts), trainer)
    return TextTokenizer(inner)


def write_tokens(
    tokenizer: TextTokenizer,
    texts: Iterable[str] | StrPath,
    path: StrPath,
    end_of_text: str | None = None,
) -> int:
    """Write the tokens of texts one after the other, for ``TokenDataset``; return how many.

    The file is of uint16 if the vocabulary fits, else of uint32. It is there whole or not at all.

    Args:
        tokenizer: what makes tokens.
        texts: texts, or a file of them, of which each line is one, with its end.
        path: the new file.
        end_of_text: a special token to put behind each text.
    """
    dtype = token_dtype(tokenizer)
    end = [] if end_of_text is None else [tokenizer.token(end_of_text)]
    count = 0
    lines = _lines(texts)
    with replacing(path) as file:
        while some := list(itertools.islice(lines, _LINES)):
            for encoded in tokenizer.inner.encode_batch(some):
                tokens = np.array([*encoded.ids, *end], dtype)
                file.write(tokens.tobytes())
                count += tokens.size
    return count


def token_dtype(tokenizer: TextTokenizer) -> np.dtype[Any]:
    """Return the dtype of the files that :func:`write_tokens` makes."""
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def _lines(texts: Iterable[str] | StrPath) -> Iterator[str]:
    if not isinstance(texts, str | os.PathLike):
        yield from texts
        return
    with open(texts, encoding="utf-8", newline="") as file:
        yield from file


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models
    except ImportError as error:
        raise ImportError(
            "tokenizing text needs the package tokenizers: pip install disttrain[text]"
        ) from error
    return tokenizers
