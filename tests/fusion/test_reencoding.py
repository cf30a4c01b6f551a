"""Encodings of masked texts: the frozen encoder's own, remembered or not, to the last bit."""

from dataclasses import replace

import numpy as np
import torch

from fusion.models.reencoding import GROUP_SIZE, Reencoder
from tests.helpers.toy import MASK, ToyText, random_batch

WIDTH = 7


class Counting(ToyText):
    """Counts the texts that are really encoded, and what is masked in them."""

    def __init__(self):
        super().__init__(WIDTH)
        self.calls = []

    def encode(self, input_ids, mask):
        self.calls.append(input_ids.clone())
        return super().encode(input_ids, mask)


def batch_of(*lengths, rows=None):
    batch = random_batch(list(lengths), m=3, channels=5, width=WIDTH, dtype=torch.float32)
    return replace(batch, rows=np.arange(len(lengths)) if rows is None else np.array(rows))


def hide(batch, *places):
    hidden = torch.zeros_like(batch.text_mask)
    for post, place in enumerate(places):
        hidden[post, place] = True
    return hidden


def test_each_text_is_encoded_as_if_alone_and_padding_is_zero():
    batch = batch_of(7, 4, 7, 2)
    hidden = hide(batch, 3, 1, 5, 0)
    tokens = Reencoder(ToyText(WIDTH))(batch, hidden)
    assert tokens.shape == (4, 7, WIDTH)
    for post, length in enumerate((7, 4, 7, 2)):
        ids = batch.input_ids[post : post + 1, :length].masked_fill(hidden[post : post + 1, :length], MASK)
        alone = ToyText(WIDTH).encode(ids, torch.ones(1, length, dtype=torch.bool))[0]
        torch.testing.assert_close(tokens[post, :length], alone)
        assert not tokens[post, length:].any()


def test_a_text_with_the_same_words_hidden_is_remembered_and_another_one_is_not():
    encoder = Counting()
    reencoder = Reencoder(encoder, cache_bytes=1 << 20)
    batch = batch_of(7, 4, 5)
    first = reencoder(batch, hide(batch, 3, 1, 2))
    calls = len(encoder.calls)
    assert torch.equal(reencoder(batch, hide(batch, 3, 1, 2)), first)
    assert len(encoder.calls) == calls
    assert reencoder.pop_stats()["remembered_share"] == 0.5
    changed = reencoder(batch, hide(batch, 3, 2, 2))
    assert len(encoder.calls) == calls + 1
    assert torch.equal(changed[0], first[0])
    assert not torch.equal(changed[1], first[1])
    assert reencoder.pop_stats()["remembered_share"] == 2 / 3


def test_what_is_remembered_is_not_what_the_caller_may_change():
    reencoder = Reencoder(ToyText(WIDTH), cache_bytes=1 << 20)
    batch = batch_of(5)
    first = reencoder(batch, hide(batch, 2))
    kept = first.clone()
    first.zero_()
    assert torch.equal(reencoder(batch, hide(batch, 2)), kept)


def test_the_budget_is_kept_and_those_that_came_first_stay():
    size = 5 * WIDTH * 4
    reencoder = Reencoder(ToyText(WIDTH), cache_bytes=2 * size)
    batch = batch_of(5, 5, 5)
    for _ in range(2):
        reencoder(batch, hide(batch, 2, 2, 2))
    assert reencoder.bytes == 2 * size
    assert reencoder.pop_stats()["remembered_share"] == 2 / 6


def test_texts_go_in_groups_of_one_length_and_one_size():
    encoder = Counting()
    batch = batch_of(*[6] * (GROUP_SIZE + 3), 4)
    Reencoder(encoder)(batch, hide(batch, *[2] * len(batch)))
    assert sorted(tuple(call.shape) for call in encoder.calls) == [(GROUP_SIZE, 4), (GROUP_SIZE, 6), (GROUP_SIZE, 6)]


def test_a_real_encoding_does_not_depend_on_its_neighbours_to_the_last_bit(text_encoder):
    """What makes a run with the memory, without it, and resumed the same run."""
    random = np.random.default_rng(0)
    lengths = [3, 9, 9, 17, 17, 17, 28, 28, 28, 28, 28, 9, 9, 9, 9, 9, 9, 9, 9, 3]
    batch = batch_of(*lengths)
    ids = torch.from_numpy(random.integers(1000, 20_000, batch.input_ids.shape))
    batch = replace(batch, input_ids=ids)
    hidden = hide(batch, *[1] * len(batch))
    whole = Reencoder(text_encoder)(batch, hidden)
    order = random.permutation(len(batch))[:11]
    some = replace(
        batch,
        rows=batch.rows[order],
        input_ids=ids[order],
        text_mask=batch.text_mask[order],
        num_maskable=batch.num_maskable[order],
    )
    part = Reencoder(text_encoder)(some, hidden[order])
    assert torch.equal(part, whole[order][:, : part.shape[1]])
