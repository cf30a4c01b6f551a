"""The ten baselines, alone and in batches, through training, evaluation and the commands.

Those whose code is public (CLMLF, MultiSentiNet, FENet) are compared with loops in float64. Of the others only a
description is public: they are held to what it says, and to what must hold of any such model.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from cli import cli
from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.evaluation.predict import predict_rows
from fusion.models.base import Dimensions
from fusion.models.baselines.clmlf import label_contrastive
from fusion.models.baselines.itignn import GraphAttention, interaction_graph
from fusion.models.baselines.mvcn import sparsemax
from fusion.models.baselines.parts import supervised_contrastive
from fusion.models.precision import precision
from fusion.models.registry import build_model, model_class
from fusion.names import baselines, model_modules
from fusion.run import Run
from fusion.training.train import train
from pipeline.common.errors import InputError
from tests.helpers import baseline_oracle, oracle
from tests.helpers.baseline_parts import Post, text_cnn
from tests.helpers.commands import SMALL, imported
from tests.helpers.models import BASE, CHANNELS, EXACT, LENGTHS, PATCHES, TEXT_WIDTH, batch_of, select
from tests.helpers.toy import write_cache

BASELINES = baselines()
CPU = torch.device("cpu")
DIMENSIONS = Dimensions(CHANNELS, TEXT_WIDTH, vocabulary=0, classes=3, patches=PATCHES)
DOCUMENT = Path(__file__).parents[2] / "docs" / "baselines.md"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("baselines") / "cache", posts=75, strength=3.0)


def model_of(name, *settings, seed=0):
    """A float64 model with random weights everywhere, biases too."""
    model = build_model(load_config(settings=(*BASE, f"model={name}", *settings)), DIMENSIONS).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model


def labelled(batch, *labels):
    return replace(batch, labels=torch.tensor(labels))


@pytest.mark.parametrize("name", baseline_oracle.LOGITS)
def test_logits_losses_and_gradients_agree_with_the_loops(name):
    model, batch = model_of(name), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    parameters = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    settings = oracle.Settings(layers=model.config.layers, heads=model.config.heads)
    posts = [
        Post(batch.patches[i], batch.pooled[i], batch.tokens[i, :n], int(batch.labels[i]))
        for i, n in enumerate(LENGTHS)
    ]
    logits = baseline_oracle.LOGITS[name]
    expected = torch.stack([logits(parameters, settings, post) for post in posts])
    torch.testing.assert_close(model(batch), expected, **EXACT)

    losses = model.losses(batch)
    sentiment = baseline_oracle.plain_total(logits, parameters, settings, posts)
    total_of = baseline_oracle.TOTALS.get(name)
    total = total_of(parameters, settings, posts) if total_of else sentiment
    torch.testing.assert_close(losses.mean("sentiment"), sentiment, **EXACT)
    torch.testing.assert_close(losses.total, total, **EXACT)
    assert (float(losses.mean("mlm")), losses.count("mlm")) == (0.0, 0)

    losses.total.backward()
    total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, parameters[key].grad, **EXACT, msg=key)


@pytest.mark.parametrize("name", BASELINES)
def test_a_posts_logits_depend_on_its_own_words_and_image_alone(name):
    """Neither on the posts beside it, nor on their order, nor on what stands in the padding or how much there is."""
    model, batch = model_of(name), batch_of(LENGTHS)
    logits = model(batch)
    for i in range(len(LENGTHS)):
        torch.testing.assert_close(model(select(batch, [i])), logits[[i]], **EXACT)
    torch.testing.assert_close(model(select(batch, [2, 0, 3, 1])), logits[[2, 0, 3, 1]], **EXACT)
    noise = torch.where(batch.text_mask[:, :, None], batch.tokens, 1e3 * torch.randn_like(batch.tokens))
    torch.testing.assert_close(model(replace(batch, tokens=noise)), logits, **EXACT)
    pad = torch.nn.functional.pad
    longer = replace(
        batch,
        tokens=pad(noise, (0, 0, 0, 11), value=17.0),
        input_ids=pad(batch.input_ids, (0, 11)),
        text_mask=pad(batch.text_mask, (0, 11), value=False),
    )
    torch.testing.assert_close(model(longer), logits, **EXACT)
    for change in ({"tokens": batch.tokens + 0.5}, {"patches": batch.patches + 0.5, "pooled": batch.pooled + 0.5}):
        assert not torch.allclose(model(replace(batch, **change)), logits, rtol=1e-6)


# What each source's description says a model reads: patches, the pooled feature; and whether the order of words behind
# the first token, and that of patches, matters.
READS = {
    "clcaf": ("patches, pooled", "words, patches"),
    "clmlf": ("patches, pooled", ""),
    "cmcn": ("patches, pooled", ""),
    "cnn-multi": ("pooled", "words"),
    "co-mn-hop": ("patches", ""),
    "dnn-lr": ("pooled", "words"),
    "fenet": ("patches", "words, patches"),
    "itignn": ("patches, pooled", "words"),
    "multisentinet": ("pooled", "words"),
    "mvcn": ("patches", ""),
}


@pytest.mark.parametrize("name", BASELINES)
def test_it_reads_the_features_and_the_orders_that_its_description_names(name):
    features, orders = READS[name]
    model, batch = model_of(name), batch_of([7, 7])
    logits = model(batch)
    changed = {
        "patches": {"patches": batch.patches + 0.5},
        "pooled": {"pooled": batch.pooled + 0.5},
        "word order": {"tokens": batch.tokens[:, [0, 3, 1, 5, 2, 6, 4]]},
        "patch order": {"patches": batch.patches[:, [3, 0, 4, 2, 1]]},
    }
    seen = {
        what: not torch.allclose(model(replace(batch, **change)), logits, **EXACT) for what, change in changed.items()
    }
    assert seen == {
        "patches": "patches" in features,
        "pooled": "pooled" in features,
        "word order": "words" in orders,
        "patch order": "patches" in orders,
    }


# A softmax, or sparsemax, takes no notice of what is added to all of its scores.
WITHOUT_EFFECT = ("pool.score.2.bias", "guided.key.bias")


@pytest.mark.parametrize("name", BASELINES)
def test_the_reported_loss_is_the_cross_entropy_and_every_parameter_learns(name):
    model, batch = model_of(name), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    losses = model.losses(batch)
    torch.testing.assert_close(losses.mean("sentiment"), F.cross_entropy(model(batch), batch.labels), **EXACT)
    losses.total.backward()
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert [key for key in idle if key not in WITHOUT_EFFECT] == []


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("labels", [(1,), (0, 1, 2), (1, 1)], ids=["one post", "no two of a label", "one label"])
def test_losses_and_gradients_are_finite_in_awkward_batches(name, labels):
    """Texts without a word among them, and batches in which a contrast has no positive or no negative."""
    model, batch = model_of(name).train(), labelled(batch_of([2, 5, 2][: len(labels)]), *labels)
    losses = model.losses(batch)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", BASELINES)
def test_it_trains_evaluates_and_reloads_to_the_same_predictions(name, cache, tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    config = load_config(settings=(*SMALL, f"model={name}", "lr=1e-2", "epochs=6", "patience=6"))
    kept = {}
    monkeypatch.setattr(Run, "save_model", keep_predictions(Run.save_model, cache, kept))
    result = train(cache, config, run, CPU, quiet=True)
    losses = [line["loss_sentiment"] for line in run.metrics()]
    assert losses[-1] < 0.9 * losses[0]
    assert result.validation["accuracy"] > 0.5  # a third by chance
    model = run.load_model(CPU)
    assert type(model) is model_class(name)
    assert (predict_rows(model, cache, cache.rows("val"), CPU) == kept["last"]).all()
    scores = evaluate(run, CPU, split="val")
    assert scores["accuracy"] == pytest.approx(result.validation["accuracy"])


def keep_predictions(save_model, cache, kept):
    """save_model that also notes what the model it saves predicts for validation."""

    def save(self, model, state):
        kept["last"] = predict_rows(model, cache, cache.rows("val"), CPU)
        save_model(self, model, state)

    return save


@pytest.mark.parametrize("name", BASELINES)
def test_bfloat16_stays_close_to_float32(name):
    torch.manual_seed(0)
    model = build_model(load_config(settings=(*BASE, f"model={name}", "precision=bfloat16")), DIMENSIONS).eval()
    batch = labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    batch = replace(batch, **{key: getattr(batch, key).float() for key in ("tokens", "patches", "pooled")})
    with precision(model.config, CPU):
        losses = model.losses(batch)
        logits = model(batch)
    losses.total.backward()
    torch.testing.assert_close(logits.float(), model(batch), atol=0.05, rtol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_baseline_hides_no_words_and_has_no_settings_of_the_fusion_model():
    assert load_config("packaged", settings=("model=clmlf",)).mlm is False
    assert load_config(settings=("model=clmlf", "mlm=true")).mlm is False
    assert load_config(settings=("model=fusion",)).mlm is True
    with pytest.raises(InputError, match=r"cross_attention: only the fusion model has it, not cmcn; leave it out"):
        load_config(settings=("model=cmcn", "cross_attention=false"))
    with pytest.raises(InputError, match=r"config, model: .*dnn-lr.* \(given 'clip' in --set\)"):
        load_config(settings=("model=clip",))


def test_every_name_of_the_config_has_its_class_and_only_that_is_imported():
    assert model_modules()["fusion"] == "fusion.models.fusion"
    assert len({model_class(name).title for name in BASELINES}) == len(BASELINES) == 10
    loaded = imported("from fusion.models.registry import model_class; model_class('fenet')")
    assert "fusion.models.baselines.fenet" in loaded
    assert "fusion.models.baselines.clmlf" not in loaded


def test_the_command_takes_a_models_name(cache, tmp_path):
    small = [part for text in SMALL for part in ("--set", text)]
    arguments = ["train", str(cache.folder), "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet", *small]
    result = CliRunner().invoke(cli, [*arguments, "--model", "cnn-multi", "--set", "epochs=1"])
    assert (result.exit_code, result.output) == (0, "")
    assert Run(tmp_path / "run").config.model == "cnn-multi"
    refused = CliRunner().invoke(cli, [*arguments, "--model", "cnn", "--overwrite"])
    assert refused.exit_code == 1
    assert "cnn-multi" in refused.output


def test_dnn_lr_averages_two_networks_that_learn_apart():
    model, batch = model_of("dnn-lr"), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    text, image = model.predictions(batch)
    torch.testing.assert_close(model(batch).softmax(dim=1), (text.softmax(dim=1) + image.softmax(dim=1)) / 2, **EXACT)
    own = F.cross_entropy(text, batch.labels) + F.cross_entropy(image, batch.labels)
    torch.testing.assert_close(model.losses(batch).total, own, **EXACT)


def test_the_joint_classifier_of_cnn_multi_teaches_its_networks_nothing():
    model, batch = model_of("cnn-multi"), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    model.losses(batch).mean("sentiment").backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == {
        "joint_head.weight",
        "joint_head.bias",
    }
    heads = zip((model.text_head, model.image_head), model.vectors(batch), strict=True)
    own = sum(F.cross_entropy(head(vector), batch.labels) for head, vector in heads)
    losses = model.losses(batch)
    torch.testing.assert_close(losses.total - losses.mean("sentiment"), own, **EXACT)


def test_cmcn_minimises_half_of_each_modalitys_own_loss_besides():
    model, batch = model_of("cmcn"), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    text, image, correlation = model.vectors(batch)
    assert ((correlation > 0) & (correlation < 1)).all()
    own = F.cross_entropy(model.text_head(text), batch.labels) + F.cross_entropy(model.image_head(image), batch.labels)
    losses = model.losses(batch)
    torch.testing.assert_close(losses.total - losses.mean("sentiment"), own / 2, **EXACT)


def test_mvcn_weighs_a_post_by_what_its_modalities_believe():
    """Heads that believe each label alike calibrate nothing; one that is sure of one post's makes that post count."""
    model, batch = model_of("mvcn"), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    contrast = supervised_contrastive(torch.cat(model.vectors(batch)), batch.labels.repeat(3), 0.07)
    with torch.no_grad():
        for head in (model.text_head, model.image_head):
            head.weight.zero_()
            head.bias.zero_()
    even = model.losses(batch)
    torch.testing.assert_close(even.total, even.mean("sentiment") + 0.5 * 2 * math.log(3) + 0.1 * contrast, **EXACT)
    with torch.no_grad():
        model.text_head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
        model.image_head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    each = F.cross_entropy(model(batch), batch.labels, reduction="none")
    own = 2 * 50 * 3 / 4  # three of the four posts are of other labels
    torch.testing.assert_close(model.losses(batch).total, each[1] + 0.5 * own + 0.1 * contrast, **EXACT)


def test_clcaf_minimises_a_tenth_of_the_contrast_besides():
    model, batch = model_of("clcaf"), labelled(batch_of(LENGTHS), 2, 0, 1, 2)
    losses, contrast = model.losses(batch), supervised_contrastive(model.fused(batch), batch.labels, 0.07)
    torch.testing.assert_close(losses.total - losses.mean("sentiment"), 0.1 * contrast, **EXACT)


def test_each_hop_of_co_mn_hop_adds_what_it_reads():
    """A memory whose rows are alike is read as that row, whatever the weights: after K hops it stands K + 1 times."""
    batch = batch_of([5])
    batch = replace(batch, tokens=batch.tokens[:, :1].expand(-1, 5, -1), patches=batch.patches[:, :1].expand(-1, 5, -1))
    for hops in (1, 2, 4):
        model = model_of("co-mn-hop", f"layers={hops}")
        rows = torch.cat([model.words(batch.tokens[:, 0]), model.regions(batch.patches[:, 0])], dim=1)
        torch.testing.assert_close(model(batch), model.head((hops + 1) * rows), **EXACT)


def test_graph_attention_listens_to_the_nodes_edges_and_to_nothing_else():
    generator = torch.Generator().manual_seed(3)
    layer = GraphAttention(6, heads=2, dropout=0.0).double().eval()
    nodes = torch.randn(1, 5, 6, generator=generator, dtype=torch.float64)
    edges = torch.eye(5, dtype=torch.bool)[None].clone()
    edges[0, 1, 3] = edges[0, 4, 0] = True
    out = layer(nodes, edges)
    order = [2, 0, 4, 1, 3]
    torch.testing.assert_close(layer(nodes[:, order], edges[:, order][:, :, order]), out[:, order], **EXACT)
    other = nodes.clone()
    other[0, 3] += 1
    differs = (layer(other, edges) != out).any(dim=2)[0]
    assert differs.tolist() == [False, True, False, True, False]
    with torch.no_grad():
        layer.hearing.zero_()
        layer.heard.zero_()
    heard = layer.transform(nodes[0])  # every neighbour counts alike
    expected = torch.stack([heard[0], (heard[1] + heard[3]) / 2, heard[2], heard[3], (heard[4] + heard[0]) / 2])
    torch.testing.assert_close(layer(nodes, edges)[0], F.elu(expected + layer.bias), **EXACT)


def test_the_text_network_agrees_with_the_loops():
    """Kim's, whose sizes and code are public; both models that have it use it alike."""
    model, batch = model_of("dnn-lr"), batch_of(LENGTHS)
    parameters = dict(model.named_parameters())
    expected = torch.stack([text_cnn(parameters, list(batch.tokens[i, :n])) for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(model.text_cnn(batch.tokens, batch.text_mask), expected, **EXACT)


def test_sparsemax_as_worked_out_by_hand():
    scores = torch.tensor([[1.0, 0.8, 0.1], [3.0, 0.5, 1.0], [0.2, 0.2, 0.2]])
    # threshold (1 + 0.8 - 1) / 2 = 0.4 on the first two; the second's lead is over 1; the third is even
    expected = torch.tensor([[0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(sparsemax(scores), expected)


def test_contrasts_as_worked_out_by_hand():
    vectors = torch.tensor([[3.0, 0.0], [0.5, 0.0], [0.0, 2.0]], dtype=torch.float64)
    labels = torch.tensor([1, 1, 0])
    # both anchors of label 1: scores 1 / 0.5 to the positive, 0 to the other; the third has no positive
    expected = torch.log(1 + torch.exp(torch.tensor(-2.0, dtype=torch.float64)))
    torch.testing.assert_close(supervised_contrastive(vectors, labels, 0.5), expected)
    # without scaling: rows 9, 1.5, 0 and 1.5, 0.25, 0 and 0, 0, 4; pairs 00 01 10 11 22
    rows = [torch.tensor(row, dtype=torch.float64).log_softmax(0) for row in ([9, 1.5, 0], [1.5, 0.25, 0], [0, 0, 4])]
    pairs = rows[0][0] + rows[0][1] + rows[1][0] + rows[1][1] + rows[2][2]
    torch.testing.assert_close(label_contrastive(vectors, labels), -pairs / 5 / 0.07)


def test_no_positive_means_no_contrast():
    vectors = torch.randn(3, 5, requires_grad=True)
    for labels, chosen in (([0, 1, 2], vectors), ([1], vectors[:1])):
        loss = supervised_contrastive(chosen, torch.tensor(labels), 0.07)
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert float(loss.detach()) == 0.0
        assert not gradient.any()


def test_the_interaction_graph_of_two_short_texts():
    edges = interaction_graph(torch.tensor([[True] * 4, [True, True, False, False]]), 3)  # two patches and the pooled
    rows = ["".join("x" if edge else "." for edge in row) for row in edges[0].tolist()]
    assert rows == ["xxx.xxx", "xxxxxxx", "xxxxxxx", ".xxxxxx", "xxxxx.x", "xxxx.xx", "xxxxxxx"]
    rows = ["".join("x" if edge else "." for edge in row) for row in edges[1].tolist()]
    assert rows == ["xx..xxx", "xx..xxx", "..x....", "...x...", "xx..x.x", "xx...xx", "xx..xxx"]


def test_the_documents_parameter_counts_are_the_models():
    """The table of docs/baselines.md: packaged encoders and preset."""
    dimensions = Dimensions(channels=1280, text_width=384, vocabulary=0, classes=3, patches=49)
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\d,]+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == BASELINES
    for name, written in rows:
        model = build_model(load_config("packaged", settings=(f"model={name}",)), dimensions)
        assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == written, name
