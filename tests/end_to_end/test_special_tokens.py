"""A literal [MASK] in a post is text; caches that were made when it was the special token keep that reading."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.from_fingerprint import same_text_encoder
from pipeline.encoders.image import NoImages
from pipeline.encoders.load import EncoderChoice, load_text_encoder
from pipeline.encoders.text import TextEncoder
from pipeline.extraction.extract import extract
from pipeline.extraction.match_cache import match_existing_cache
from pipeline.posts.manifest import Post, write_manifest
from tests.helpers.commands import invoke

CPU = torch.device("cpu")
OLD = EncoderChoice(preset="packaged", image="none", device="cpu", split_special_tokens=False)
LITERALS = ["a [MASK] b", "[CLS][SEP]", "x[PAD]y [UNK] 天", "[mask] é[MASK]", "[MASK]" * 99, ""]


@pytest.fixture(scope="module")
def old_encoder():
    return load_text_encoder(OLD)


def special_ids(encoder):
    words = Tokenizer.from_str(encoder.pieces.tokenizer)
    return {words.token_to_id(token) for token in ("[MASK]", "[CLS]", "[SEP]", "[PAD]")}


@pytest.mark.parametrize("text", LITERALS)
def test_a_literal_is_text(text, text_encoder):
    (ids,), (cut,) = text_encoder.tokenize([text])
    spans = text_encoder.spans(text)
    assert len(ids) == len(spans) <= text_encoder.max_tokens
    assert not special_ids(text_encoder) & set(ids[1:-1].tolist())
    assert spans[0] == spans[-1] == (0, 0)
    if text.isascii():  # what the pieces stand for is the text, but for its spaces
        read = "".join(text[start:end] for start, end in spans)
        whole = text.replace(" ", "")
        assert whole.startswith(read)
        assert (read == whole) == (not cut)


def test_the_earlier_reading_is_the_special_token(old_encoder, text_encoder):
    (ids,), _ = old_encoder.tokenize(["a [MASK] b"])
    assert ids[2] == old_encoder.mask_id
    assert "special_tokens_in_text" not in old_encoder.fingerprint
    assert text_encoder.fingerprint == {**old_encoder.fingerprint, "special_tokens_in_text": "split"}
    for text in ("an ordinary text", "天气 [brackets] <s>", ""):
        np.testing.assert_array_equal(old_encoder.tokenize([text])[0][0], text_encoder.tokenize([text])[0][0])


class Model(nn.Module):
    """As much of a model as a text encoder asks for when it is made."""

    config = type("config", (), {"hidden_size": 5, "vocab_size": 400})


def with_special_tokens(tokenizer, **options):
    """RoBERTa's special tokens around a text, in a text encoder."""
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), "<s>", "</s>", "<pad>", "<unk>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", pad_token="<pad>", mask_token="<mask>", **options
    )
    return TextEncoder(Model(), fast, "toy", max_tokens=31, dtype="float32", device=CPU)


def bytes_tokenizer():
    """Byte-level, as RoBERTa's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def pieces_tokenizer():
    """SentencePiece's unigrams, as XLM-RoBERTa's: the special tokens are pieces, and better ones than any other."""
    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
    pieces += [(letter, -3.0) for letter in "▁amsk<>/"]
    tokenizer = Tokenizer(models.Unigram(pieces, 3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


@pytest.mark.parametrize("make", [bytes_tokenizer, pieces_tokenizer])
def test_so_it_is_with_other_special_tokens(make):
    encoder = with_special_tokens(make(), unk_token="<unk>")
    words = Tokenizer.from_str(encoder.pieces.tokenizer)
    special = {words.token_to_id(token) for token in ("<s>", "</s>", "<pad>", "<mask>")}
    for text in ("a <mask> a", "<s>a</s>", "<pad><mask>", "<mask>" * 40):
        (ids,), (cut,) = encoder.tokenize([text])
        assert not special & set(ids[1:-1].tolist())
        assert (ids[0], ids[-1]) == (words.token_to_id("<s>"), words.token_to_id("</s>"))
        spans = encoder.spans(text)
        assert len(spans) == len(ids)
        assert cut == (len(ids) == 31)
        read = {place for start, end in spans for place in range(start, end)}
        upto = max(read) + 1 if cut else len(text)
        assert {place for place in range(upto) if text[place] != " "} <= read


def posts_of(folder, count):
    posts = [
        Post(str(number), f"{LITERALS[number % 4]} {number}", None, ("positive", "neutral", "negative")[number % 3],
             ("train", "train", "val", "test")[number // 3 % 4])
        for number in range(count)
    ]  # fmt: skip
    write_manifest(folder / "m.jsonl", posts)
    return posts


@pytest.fixture
def old_cache(tmp_path, old_encoder):
    """A finished cache of 24 texts as it was made before, without the field."""
    extract(posts_of(tmp_path, 24), tmp_path / "cache", NoImages(CPU), old_encoder, quiet=True)
    return tmp_path / "cache"


ENCODERS = ("--encoders", "packaged", "--image-encoder", "none", "--quiet")


def test_an_earlier_cache_keeps_its_reading_whatever_is_done_with_it(old_cache, tmp_path, old_encoder):
    def check(posts):
        cache = Cache(old_cache)
        assert cache.fingerprint["text"] == old_encoder.fingerprint
        for row, post in enumerate(posts):
            np.testing.assert_array_equal(cache.input_ids(row), old_encoder.tokenize([post.text])[0][0])

    posts = posts_of(tmp_path, 31)
    invoke("extract", tmp_path / "m.jsonl", "--out", old_cache, "--append", *ENCODERS)
    check(posts)
    (old_cache / "index.h5").unlink()  # as an extraction leaves it that was killed before its end
    invoke("extract", tmp_path / "m.jsonl", "--out", old_cache, *ENCODERS)
    check(posts)
    shard = old_cache / "shard-00000.h5"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    invoke("extract", tmp_path / "m.jsonl", "--out", old_cache, "--repair", *ENCODERS)
    check(posts)
    invoke("inspect", old_cache, "--re-encode", 5)
    invoke("train", old_cache, "--out", tmp_path / "run", "--set", "width=16", "--set", "heads=2", "--set", "layers=1",
           "--set", "epochs=1", "--set", "mlm=false", "--set", "modalities=text", "--quiet")  # fmt: skip
    invoke("evaluate", tmp_path / "run", "--quiet")
    invoke("predict", tmp_path / "run", "--text", "a [MASK] b")
    marks = Cache(old_cache).fingerprint["text"]
    (ids,), _ = same_text_encoder(marks, "cpu", owner="the run").tokenize(["a [MASK] b"])
    assert ids[2] == old_encoder.mask_id


def test_a_new_cache_and_one_that_begins_again_have_the_new_reading(old_cache, tmp_path, text_encoder):
    invoke("extract", tmp_path / "m.jsonl", "--out", tmp_path / "new", *ENCODERS)
    assert Cache(tmp_path / "new").fingerprint["text"] == text_encoder.fingerprint
    invoke("extract", tmp_path / "m.jsonl", "--out", old_cache, "--overwrite", *ENCODERS)
    assert Cache(old_cache).fingerprint["text"] == text_encoder.fingerprint


def test_what_can_not_be_read_says_nothing_of_the_reading(old_cache, tmp_path):
    choice = replace(OLD, split_special_tokens=True)
    assert match_existing_cache(choice, tmp_path / "nothing") == choice
    assert match_existing_cache(choice, old_cache) == OLD
    shutil.copy(old_cache / "shard-00000.h5", old_cache / "shard-00001.h5")
    (old_cache / "shard-00000.h5").write_bytes(b"torn")
    assert match_existing_cache(choice, old_cache) == OLD


def test_readings_are_not_mixed(old_cache, tmp_path, text_encoder):
    (old_cache / "index.h5").unlink()
    posts = posts_of(tmp_path, 24)
    with pytest.raises(InputError, match=r"computed by other encoders; text\.special_tokens_in_text: None, not split"):
        extract(posts, old_cache, NoImages(CPU), text_encoder, quiet=True)
