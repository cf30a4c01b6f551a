"""Compares the model with the oracle."""

import torch

from fusion.data.batches import Batch
from fusion.models.fusion import FusionModel
from tests.helpers import oracle
from tests.helpers.models import EXACT, TEXT, oracle_of, reencode
from tests.helpers.toy import MASK


def assert_agrees(model: FusionModel, batch: Batch, **more: tuple[float, ...]) -> None:
    """Logits, hidden words, losses and gradients of model and oracle; `more`: settings of the oracle alone."""
    parameters, options, posts = oracle_of(model, batch, **more)
    with torch.no_grad():
        expected = torch.stack([oracle.logits(parameters, options, post) for post in posts])
        sentiment = oracle.sentiment_loss(parameters, options, posts)
    found = model(batch)
    torch.testing.assert_close(found.log_softmax(dim=1) if options.label_rule else found, expected, **EXACT)

    losses = model.losses(batch, TEXT)
    total = oracle.total_loss(parameters, options, posts, MASK, reencode, TEXT.word_embeddings)
    torch.testing.assert_close(losses.mean("sentiment"), sentiment, **EXACT)
    torch.testing.assert_close(losses.total, total, **EXACT)
    if options.mlm:
        hidden = model.choose_masked(batch, *model.embed(batch))
        found = [row.nonzero()[:, 0].tolist() for row in hidden]
        assert found == [oracle.masked_positions(parameters, options, post) for post in posts]
        assert losses.count("mlm") == sum(map(len, found))
        with torch.no_grad():
            mlm = oracle.mlm_loss(parameters, options, posts, MASK, reencode, TEXT.word_embeddings)
        torch.testing.assert_close(losses.mean("mlm"), mlm, **EXACT)

    losses.total.backward()
    total.backward()
    for name, parameter in model.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        theirs = parameters[name].grad
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, **EXACT, msg=name)
