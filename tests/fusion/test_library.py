"""Called from Python: a module of one's own is trained, resumed, scored and refused as the models that ship."""

import contextlib
import io
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusion
from fusion import (
    Config,
    Losses,
    Run,
    Term,
    evaluate,
    evaluate_model,
    format_scores,
    iterate_batches,
    predict_rows,
    train,
)
from fusion.config import load_config
from fusion.data.batches import read_batch
from fusion.data.folds import write_folds
from fusion.explanation.attribution import batch_of
from fusion.explanation.explain import cached_features, explain_features
from fusion.inference.export import export
from fusion.inference.predict_file import predict_file
from fusion.models.base import Dimensions
from fusion.models.own import as_model, ready
from fusion.models.registry import build_model
from fusion.report.run_report import write_report
from fusion.run_files import Evaluation
from fusion.tensor_files import tensor_names
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, as_command, option, switch
from pipeline.common.files import write_json, write_text
from pipeline.extraction.extract import extract
from pipeline.posts.manifest import read_manifest, write_manifest
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import ROOT, invoke, refused
from tests.helpers.toy import relabelled, write_cache
from tests.helpers.training import CPU, TINY, Pooled, lines_of

WIDTH, CHANNELS = 7, 11
SETTINGS = Config(lr=3e-2, epochs=3, batch_size=8)


class Mine(nn.Module):
    """A linear layer on both modalities' means."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH + CHANNELS, 3)

    def forward(self, batch):
        real = batch.text_mask[:, :, None]
        text = (batch.tokens * real).sum(dim=1) / real.sum(dim=1)
        return self.head(torch.cat([text, batch.pooled], dim=1))


def mine():
    torch.manual_seed(5)
    return Mine()


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "cache", posts=61, strength=5.0)


def test_each_name_of_the_package_can_be_imported_and_is_in_the_document():
    document = (ROOT / "docs" / "library.md").read_text()
    for name in fusion.__all__:
        assert callable(getattr(fusion, name))
        assert re.search(rf"\b{name}\b", document), name
    assert {"train", "evaluate", "evaluate_model", "predict_rows", "Cache", "Run"} <= set(fusion.__all__)
    imported = {name for line in re.findall(r"^from fusion import (.*)$", document, re.M) for name in line.split(", ")}
    assert imported <= set(fusion.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fusion.nothing  # noqa: B018


def test_a_module_of_ones_own_is_trained_and_scored_with_paths_as_text(cache, tmp_path):
    model = mine()
    result = train(str(cache.folder), model, str(tmp_path / "run"), "cpu", config=SETTINGS, quiet=True)
    scores = evaluate(str(tmp_path / "run"), "cpu", model=mine())
    Evaluation.model_validate(scores)
    assert result.epochs == 3
    assert scores["accuracy"] > 0.5  # chance is a third
    rows = cache.rows("test")
    stored = [list(post["probabilities"].values()) for post in scores["posts"]]
    np.testing.assert_array_equal(predict_rows(model, cache, rows, "cpu"), stored)  # the module has the best weights
    again = evaluate_model(model, str(cache.folder), "cpu")
    assert {name: value for name, value in scores.items() if name != "of"} == again
    assert Run(tmp_path / "run").metadata["module"] == "Mine"
    assert Run(tmp_path / "run").config.model == "own"


def test_a_module_is_trained_as_the_same_model_that_ships_and_its_table_is_that_of_the_command(cache, tmp_path):
    """The module is a baseline that says nothing of being one: the numbers must be the baseline's, to the last bit."""
    config = load_config(settings=(*TINY, "model=dnn-lr", "epochs=2"))
    torch.manual_seed(config.seed)
    inner = build_model(config, Dimensions(CHANNELS, WIDTH, 0, classes=3, patches=5))

    class Disguised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch):
            return self.inner(batch)

        def losses(self, batch):
            return self.inner.losses(batch)

    train(cache, config, tmp_path / "named", CPU, quiet=True)
    settings = {name: getattr(config, name) for name in ("lr", "epochs", "batch_size", "seed")}
    train(cache, Disguised(), tmp_path / "own", CPU, config=Config(**settings), quiet=True)
    named, own = Run(tmp_path / "named"), Run(tmp_path / "own")
    assert lines_of(own) == lines_of(named)
    printed = invoke("evaluate", named.folder, "--device", "cpu")
    assert format_scores(evaluate(own, CPU, model=Disguised())) in printed


def test_an_interrupted_training_of_a_module_resumes_to_the_same_numbers(cache, tmp_path):
    whole = Run(tmp_path / "whole")
    train(cache, mine(), whole, CPU, config=SETTINGS, quiet=True)

    def interrupt(line):
        raise KeyboardInterrupt

    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(cache, mine(), run, CPU, config=SETTINGS, quiet=True, on_epoch=interrupt)
    torch.manual_seed(77)  # the resumed module begins with other weights: those of the state replace them
    train(cache, Mine(), run, CPU, config=SETTINGS, quiet=True)
    assert lines_of(run) == lines_of(whole)
    assert (run.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"run: this run is finished, .*; give another folder, or overwrite=True"):
        train(cache, mine(), run, CPU, config=SETTINGS, quiet=True)


def test_an_unfinished_run_is_not_resumed_with_other_settings(cache, tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, mine(), tmp_path / "run", CPU, config=SETTINGS, quiet=True, on_epoch=interrupt)
    other = SETTINGS.model_copy(update={"lr": 0.5})
    with pytest.raises(InputError, match=r"unfinished run with lr 0\.03, not 0\.5; give the same, or overwrite=True"):
        train(cache, mine(), tmp_path / "run", CPU, config=other, quiet=True)


def test_losses_of_ones_own_are_what_is_minimised(cache, tmp_path):
    class Scalar(Mine):
        def losses(self, batch):
            return 3 * F.cross_entropy(self(batch), batch.labels)

    class Terms(Mine):
        def losses(self, batch):
            loss = F.cross_entropy(self(batch), batch.labels)
            return Losses((Term("sentiment", loss, len(batch), 0.0), Term("mine", 3 * loss, len(batch))))

    runs = {}
    for kind in (Mine, Scalar, Terms):
        torch.manual_seed(5)
        train(
            cache, kind(), tmp_path / kind.__name__, CPU, config=SETTINGS.model_copy(update={"epochs": 1}), quiet=True
        )
        runs[kind] = Run(tmp_path / kind.__name__)
    plain, scalar, terms = (runs[kind].metrics()[0]["loss_sentiment"] for kind in (Mine, Scalar, Terms))
    assert scalar == pytest.approx(3 * plain, rel=0.2)  # reported as it is minimised, and the steps differ
    assert terms == pytest.approx(scalar / 3, rel=1e-6)
    weights = [(runs[kind].folder / "model.safetensors").read_bytes()[-200:] for kind in (Scalar, Terms)]
    assert weights[0] == weights[1]  # the same objective


def test_weights_that_are_shared_are_kept_once_and_stay_shared(cache, tmp_path):
    class Tied(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.head
            self.register_buffer("seen", torch.tensor([True, False]))

    train(cache, Tied(), tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    assert set(tensor_names(tmp_path / "run" / "model.safetensors")) == {"head.weight", "head.bias", "seen"}
    model = Tied()
    evaluate(tmp_path / "run", CPU, model=model)
    assert model.again is model.head


def test_lazy_layers_get_their_sizes_from_the_cache(cache, tmp_path):
    class Lazy(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.LazyLinear(3)

    train(cache, Lazy(), tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    assert evaluate_model(Lazy(), cache, CPU)["posts_used"] == len(cache.rows("test"))
    model = Lazy()
    assert evaluate(tmp_path / "run", CPU, model=model)["posts_used"] == len(cache.rows("test"))
    assert model.head.weight.shape == (3, CHANNELS + WIDTH)
    with pytest.raises(InputError, match="Lazy has lazy layers without a size; call it on a batch before"):
        Run(tmp_path / "run").load_model(CPU, Lazy())


class _Flat(Mine):
    def forward(self, batch):
        return super().forward(batch).sum(dim=1)


class _Words(Mine):
    def forward(self, batch):
        return ["positive"] * len(batch)


class _Vector(Mine):
    def losses(self, batch):
        return F.cross_entropy(self(batch), batch.labels, reduction="none")


class _Nothing(nn.Module):
    def forward(self, batch):
        return torch.zeros(len(batch), 3)


class _Extra(Mine):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


class _Endless(Mine):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


class _Unset(Mine):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([torch.nan]))


class _Unnamed(Mine):
    def losses(self, batch):
        return fusion.Losses((fusion.Term("mine", F.cross_entropy(self(batch), batch.labels), len(batch)),))


class _Vectors(Mine):
    def losses(self, batch):
        each = F.cross_entropy(self(batch), batch.labels, reduction="none")
        return fusion.Losses((fusion.Term("sentiment", each, len(batch)),))


class _Diverging(Mine):
    def forward(self, batch):
        return super().forward(batch) / torch.zeros(1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Flat, r"_Flat\.forward: gives torch\.float32 \(2,\), and logits are floating-point \(2, 3\)"),
        (_Words, r"_Words\.forward: gives list, and logits are floating-point \(2, 3\)"),
        (_Vector, r"_Vector\.losses: gives neither a `Losses` nor a scalar"),
        (_Nothing, r"_Nothing: has no trainable parameter \(requires_grad\)"),
        (_Extra, "_Extra: _extra_state is no tensor, and only tensors can be kept; leave get_extra_state out"),
        (_Endless, r"_Endless: mask holds values that are not finite; register it with persistent=False"),
        (_Unset, r"_Unset: bias holds values that are not finite; initialise it with finite values"),
        (_Unnamed, r"_Unnamed\.losses: needs a Term named 'sentiment', the loss to report"),
        (_Vectors, r"_Vectors\.losses: the mean of each Term must be a scalar"),
        (_Diverging, "the loss is nan"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_in_one_line(kind, message, cache, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train(cache, kind(), tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_batch_that_is_tried_changes_no_statistics_of_the_module(cache):
    class Normed(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(CHANNELS)

        def forward(self, batch):
            return super().forward(batch) + self.norm(batch.pooled).sum(dim=1, keepdim=True)

    model = Normed()
    ready(as_model(model, cache), read_batch(cache, cache.rows("train")[:2], CPU))
    assert model.norm.num_batches_tracked == 0
    assert not model.norm.running_mean.any()


def test_scoring_leaves_a_module_in_the_mode_that_it_was_in(cache):
    """A loop of one's own validates after an epoch, and goes on with dropout."""
    model = mine().train()
    model.frozen = nn.Dropout(0.5).eval()
    numbers = cache.rows("val")[:3].tolist()
    by_number = predict_rows(model, str(cache.folder), numbers, CPU)
    np.testing.assert_array_equal(by_number, predict_rows(model, cache, np.isin(np.arange(61), numbers), CPU))
    evaluate_model(model, cache, CPU)
    assert (model.training, model.frozen.training) == (True, False)


def test_a_weight_that_is_not_contiguous_is_kept_and_resumed(cache, tmp_path):
    class Turned(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.turned = nn.Parameter(torch.zeros(CHANNELS, 3).t())

        def forward(self, batch):
            return super().forward(batch) + batch.pooled @ self.turned.t()

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, Turned(), tmp_path / "run", CPU, config=SETTINGS, quiet=True, on_epoch=stop)
    assert Run(tmp_path / "run").metadata["state"] == "interrupted"
    train(cache, Turned(), tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    assert Run(tmp_path / "run").finished


def test_frozen_parameters_are_not_counted_as_trained(cache, tmp_path):
    model = mine()
    model.fixed = nn.Linear(7, 13).requires_grad_(False)
    learnt = sum(parameter.numel() for parameter in mine().parameters())
    train(cache, model, tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    assert Run(tmp_path / "run").metadata["parameters"]["trainable"] == learnt


def test_another_module_is_not_taken_for_the_runs(cache, tmp_path):
    class Other(Mine):
        def forward(self, batch):
            return -super().forward(batch)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, mine(), tmp_path / "run", CPU, config=SETTINGS, quiet=True, on_epoch=stop)
    with pytest.raises(InputError, match=r"run: a run of the module Mine, not Other"):
        train(cache, Other(), tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    train(cache, mine(), tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    with pytest.raises(InputError, match=r"run: a run of the module Mine, not Other"):
        evaluate(tmp_path / "run", CPU, model=Other())


def test_simple_mistakes_are_named(cache, tmp_path):
    with pytest.raises(InputError, match=r"model: must be a torch\.nn\.Module or a Config, not str"):
        train(cache, "dnn-lr", tmp_path / "run", CPU)
    with pytest.raises(InputError, match=r"model: a model of this library is trained by its configuration; give `mo"):
        train(cache, as_model(mine(), cache), tmp_path / "run", CPU)
    with pytest.raises(InputError, match="config: only for a module of your own"):
        train(cache, load_config(settings=(*TINY, "model=dnn-lr")), tmp_path / "run", CPU, config=SETTINGS)
    with pytest.raises(InputError, match="split=tset: must be one of train, val, test"):
        evaluate_model(mine(), cache, CPU, split="tset")
    assert not (tmp_path / "run").exists()


def test_an_explanation_is_of_the_words_that_the_module_reads(tmp_path):
    """The module looks up input_ids: of a batch of zeros it would predict something else."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.words = nn.EmbeddingBag(97, 3)

        def forward(self, batch):
            return self.words(batch.input_ids) + batch.pooled[:, :3] + batch.tokens[:, :, :3].mean(dim=1)

    cache = write_cache(tmp_path / "cache", m=4)
    model = as_model(Embedded(), cache, SETTINGS).eval()
    row = int(cache.rows("test")[0])
    post = cached_features(cache, row, CPU)
    length = int(cache.lengths[row])
    expected = model(read_batch(cache, [row], CPU))[0, :]
    torch.testing.assert_close(model(batch_of(model, post))[0], expected)
    (explained,) = explain_features(model, [post], ["a " * length], lambda text: [(0, 0)] * length, LABELS)
    assert explained.method == "gradient"
    np.testing.assert_allclose(list(explained.probabilities.values()), expected.detach().softmax(0), atol=1e-6)


def test_settings_that_a_module_cannot_have_are_refused(cache, tmp_path):
    with pytest.raises(InputError, match="config, label_rule: only the fusion model has it, not own; leave it out"):
        train(cache, mine(), tmp_path / "run", CPU, config=Config(label_rule=True), quiet=True)
    model = build_model(
        load_config(settings=(*TINY, "model=dnn-lr")), Dimensions(CHANNELS, WIDTH, 0, classes=3, patches=5)
    )
    with pytest.raises(InputError, match="config: a model of this library has its own; leave it out"):
        evaluate_model(model, cache, CPU, config=SETTINGS)


def test_the_run_of_a_module_needs_that_module(cache, tmp_path):
    run = tmp_path / "run"
    train(cache, mine(), run, CPU, config=SETTINGS, quiet=True)
    train(cache, load_config(settings=(*TINY, "model=dnn-lr")), tmp_path / "named", CPU, quiet=True)
    with pytest.raises(InputError, match="a run of the model dnn-lr; leave `model` out"):
        evaluate(tmp_path / "named", CPU, model=mine())
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    message = f"{run}: a run of a module of your own, Mine; use it from Python with that module as `model`"
    for command in (
        ("evaluate", run),
        ("predict", run, "--text", "a"),
        ("explain", run, "--ids", "1", "--out", tmp_path / "out"),
        ("explain", run, "--faithfulness"),
        ("export", run, "--out", tmp_path / "out"),
        ("serve", run, "--port", "0"),
    ):
        assert message in refused(*command), command
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    line = refused("train", cache.folder, "--out", tmp_path / "new", "--model", "own")
    assert "config, model: own is a module that is given from Python; see docs/library.md" in line
    shutil.rmtree(cache.folder)
    other = write_cache(cache.folder, posts=61, width=5)
    with pytest.raises(InputError, match=r"text_width 5, but .* was made for 7"):
        evaluate(run, CPU, model=mine(), cache=other.folder)


def test_batches_are_the_posts_of_a_split_once_each(cache):
    batches = list(iterate_batches(cache, "train", 8, seed=3))
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == cache.rows("train").tolist()
    assert [len(batch) for batch in batches].count(8) == len(rows) // 8
    assert [batch.rows.tolist() for batch in iterate_batches(cache, "train", 8, seed=3, epoch=2)] != [
        batch.rows.tolist() for batch in batches
    ]


def test_training_leaves_the_random_state_as_it_was(cache, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(cache, load_config(settings=(*TINY, "model=dnn-lr")), tmp_path / "run", CPU, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_message_names_the_argument_or_the_option():
    assert (option("text_encoder", "DIR"), option("out"), switch("overwrite")) == (
        "text_encoder=DIR",
        "out",
        "overwrite=True",
    )
    with as_command():
        assert (option("text_encoder", "DIR"), option("out"), switch("overwrite")) == (
            "--text-encoder DIR",
            "--out",
            "--overwrite",
        )
    assert option("out") == "out"


def test_no_message_of_the_library_names_an_option_in_its_text():
    """It would tell a caller from Python of `--overwrite`; `option` and `switch` name what the caller can give."""
    found = []
    for folder in ("fusion", "pipeline"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "commands" in str(path) or path.name in ("options.py", "errors.py", "model_card.py", "guard.py"):
                continue
            for line in path.read_text().split("\n"):
                for text in re.findall(r'"([^"]*)"', re.sub(r"wording\(.*", "", line)):
                    if re.search(r"(?<![\w-])--(?!set\b)[a-z]", text) and '"""' not in line:
                        found.append(f"{path.name}: {text}")
    assert found == ["config.py: --preset {preset}"]


@pytest.fixture
def examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.S)


def test_the_example_of_the_document_trains_a_module_and_prints_the_table(examples, cache, tmp_path, monkeypatch):
    code = [line for line in examples[0].split("\n") if line.strip()]
    assert len(code) <= 25
    (tmp_path / "artifacts" / "demo").mkdir(parents=True)
    shutil.move(cache.folder, tmp_path / "artifacts" / "demo" / "cache")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(examples[0], {"__name__": "example"})
    lines = printed.getvalue().split("\n")
    assert lines[0].startswith("test: ")
    titles = [line[:20].strip() for line in lines]
    for title in ("this model", "95 % interval", "image shuffled", "linear probe, both", "model - probe"):
        assert title in titles
    drawn = Cache("artifacts/demo/cache")
    labels = [
        {"label": drawn.label_names[code], "scene": ("city", "sea", "home")[row % 3]}
        for row, code in enumerate(drawn.labels)
    ]
    names: dict[str, object] = {"cache": relabelled(drawn, labels, {"label": drawn.label_names})}
    (preset := tmp_path / "demo.yaml").write_text("width: 16\nheads: 2\nepochs: 1\nlr: 1e-3\n")
    monkeypatch.setattr("fusion.config.presets", lambda: {"demo": preset})
    for example in examples[1:5]:  # the others need encoders: test_raw_posts
        exec(example, names | {"model": mine()})


def test_raw_posts_are_predicted_and_explained_by_a_run_of_ones_own(
    drawn_cache, drawn_posts, tmp_path, examples, monkeypatch
):
    model = Pooled()
    train(drawn_cache, model, tmp_path / "run", CPU, config=SETTINGS, quiet=True)
    predictor = fusion.Predictor.open(tmp_path / "run", "cpu", model=model)
    post = drawn_posts[0]
    (answer,) = predictor.predict([fusion.RawPost(post.id, post.text, post.image.read_bytes())])
    row = drawn_cache.ids.index(post.id)
    (cached,) = predict_rows(model, drawn_cache, np.array([row]), "cpu")
    np.testing.assert_allclose(list(answer.probabilities.values()), cached, atol=1e-3)
    folder = tmp_path / "artifacts" / "demo"
    folder.mkdir(parents=True)
    train(drawn_cache, load_config(settings=(*TINY, "model=dnn-lr")), folder / "run", CPU, quiet=True)
    shutil.copytree(tmp_path / "run", folder / "mine")
    shutil.copy(post.image, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"model": model}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for example in examples[5:]:
            exec(example, names)
    assert printed.getvalue().count("positive") >= 2


def test_paths_may_be_text_wherever_a_file_or_a_folder_is_given(drawn_posts, image_encoder, text_encoder, tmp_path):
    """The whole way from a manifest to a report and an export."""
    here = str(tmp_path)
    write_manifest(f"{here}/posts.jsonl", drawn_posts)
    manifest = read_manifest(f"{here}/posts.jsonl")
    posts, names = manifest.posts, manifest.names
    extract(posts, f"{here}/cache", image_encoder, text_encoder, names=names, workers=1, quiet=True)
    cache = Cache(f"{here}/cache")
    write_folds(cache, f"{here}/folds", folds=3)
    cache = cache.with_splits(f"{here}/folds/fold_1.csv")
    write_text(tmp_path / "mine.yaml", "width: 16\nheads: 2\nlayers: 1\nepochs: 1\nmlm: false\n")
    config = load_config(file=f"{here}/mine.yaml")
    train(cache, config, f"{here}/run", "cpu", quiet=True)
    run = Run(f"{here}/run")
    write_json(tmp_path / "run" / "evaluation-test.json", evaluate(run, "cpu", splits=f"{here}/folds/fold_1.csv"))
    write_report(run, f"{here}/report.html", CPU, worst=0)
    export(run, f"{here}/export")
    predictor = fusion.Predictor(Run(f"{here}/export"), run.load_model(CPU), image_encoder, text_encoder, CPU)
    report = predict_file(predictor, f"{here}/posts.jsonl", f"{here}/answers.jsonl", workers=1, quiet=True)
    assert report.posts == len(posts)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(posts)
