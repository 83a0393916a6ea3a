"""Tokenizers, and the files of tokens they make."""

import numpy as np
import pytest

from disttrain.data import TokenDataset, text
from disttrain.errors import FileDamaged

pytest.importorskip("tokenizers", reason="needs the package tokenizers, which is not installed")

LINES = ["the cat sat on the mat\n", "the dog sat on the cat\n", "Ünïcode 🙂 and\ttabs\n"] * 20


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(LINES), encoding="utf-8")
    return path


def test_bytes_come_back_as_they_were(corpus):
    bpe = text.train_bpe(corpus, 300)

    assert 257 < len(bpe) <= 300
    for line in (*LINES[:3], "never seen: 漢字\0\r\n"):
        assert bpe.decode(bpe.encode(line)) == line
    assert len(bpe.encode("the cat")) < 4
    assert bpe.token("<|endoftext|>") == 0
    assert bpe.encode("the cat") == text.train_bpe(LINES, 300).encode("the cat")
    with pytest.raises(KeyError, match="no token 'zzz'"):
        bpe.token("zzz")
    with pytest.raises(ValueError, match="at least 256"):
        text.train_bpe(corpus, 100)


def test_word_pieces(corpus):
    pieces = text.train_wordpiece(corpus, 80)

    assert [pieces.token(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert pieces.encode("The CAT") == [pieces.token("the"), pieces.token("cat")]
    assert pieces.decode(pieces.encode("the dog sat")) == "the dog sat"


def test_saved_and_loaded(corpus, tmp_path):
    bpe = text.train_bpe(corpus, 280)
    bpe.save(tmp_path / "t.json")

    assert text.TextTokenizer.load(tmp_path / "t.json").encode(LINES[0]) == bpe.encode(LINES[0])
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(FileDamaged, match=r"t\.json is no tokenizer\.json"):
        text.TextTokenizer.load(tmp_path / "t.json")


@pytest.mark.parametrize("from_file", [True, False])
def test_a_file_of_tokens(corpus, tmp_path, from_file):
    bpe = text.train_bpe(corpus, 300)

    count = text.write_tokens(bpe, corpus if from_file else LINES, tmp_path / "t.bin", "<|endoftext|>")

    tokens = np.fromfile(tmp_path / "t.bin", text.token_dtype(bpe))
    assert (tokens.size, tokens.dtype) == (count, np.uint16)
    assert tokens.tolist() == [t for line in LINES for t in (*bpe.encode(line), 0)]
    x, y = TokenDataset(tmp_path / "t.bin", 8)[1]
    assert x.tolist() == tokens[8:16].tolist()
    assert y.tolist() == tokens[9:17].tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt", "t.bin"]
