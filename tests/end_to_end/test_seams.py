"""Where a run meets a cache that is not quite its own: what it is scored on, shown and resumed with is still right."""

import csv
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.evaluation.linear_probe import probe
from fusion.experiments.reproduce import TableSpec, reproduce
from fusion.run import Run
from fusion.run_posts import PostMatch, RunPost, read_posts
from fusion.run_posts import posts_of as run_posts_of
from fusion.training.train import train
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.posts.manifest import SPLITS, Post
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import SMALL, invoke, refused
from tests.helpers.toy import MVSA_NAMES, write_cache
from tests.helpers.training import CPU, run_of

PLAIN = ("mlm=false", "epochs=2")


def posts_of(cache):
    """The posts of a cache's index, with their labels and splits."""
    return hdf5.read_posts(cache.folder)


def index_anew(cache, posts):
    """The same shards under an index with other labels or splits, as `extract --append` of a new manifest makes it."""
    hdf5.write_index(cache.folder, hdf5.in_shards(posts), cache.fingerprint, names=MVSA_NAMES)
    return Cache(cache.folder)


def changed(post, **fields):
    return Post(**{**vars(post), **fields})


@pytest.fixture
def larger(tmp_path, monkeypatch):
    """A cache of 125 posts in five shards; `cache` is its first three, as before an `extract --append`."""
    monkeypatch.setattr(hdf5, "SHARD_POSTS", 25)
    return write_cache(tmp_path / "larger", posts=125, strength=3.0)


@pytest.fixture
def cache(larger, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    for number in range(3):
        shutil.copy(larger.folder / hdf5.shard_name(number), folder)
    hdf5.write_index(folder, hdf5.in_shards(posts_of(larger)[:75]), larger.fingerprint, names=MVSA_NAMES)
    return Cache(folder)


def grow(cache, larger):
    for path in larger.folder.iterdir():
        shutil.copy(path, cache.folder)


@pytest.fixture
def run(cache, tmp_path):
    return run_of(tmp_path / "run", cache, *PLAIN)[0]


def test_a_run_keeps_what_its_posts_are(cache, run):
    with run.splits.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "label", "split", "text_sha256", "image_sha256", "comparable_sha256", "failed"]
    assert [row["id"] for row in rows] == cache.ids
    assert rows[7]["text_sha256"] == cache.records[7].text_sha256
    assert rows[7]["image_sha256"] == cache.records[7].image_sha256
    assert run.open_cache().note == ""


def test_posts_of_a_cache_that_was_split_anew_keep_the_runs_split(cache, run):
    """`extract --append` of a manifest that was split again: what was trained on must not be scored as test."""
    before, test = evaluate(run, CPU), set(np.array(cache.ids)[cache.rows("test")])
    posts = [changed(post, split=SPLITS[(SPLITS.index(post.split) + 1) % 3]) for post in posts_of(cache)]
    index_anew(cache, posts)
    after = evaluate(run, CPU)
    assert {post["id"] for post in after["posts"]} == test
    assert after["accuracy"] == before["accuracy"]
    assert after["versus_probe"] == before["versus_probe"]


def test_new_posts_of_the_runs_own_cache_have_no_split(cache, run, larger, tmp_path):
    before = evaluate(run, CPU)
    grow(cache, larger)
    said = []
    after = evaluate(run, CPU, say=said.append)
    assert [post["id"] for post in after["posts"]] == [post["id"] for post in before["posts"]]
    assert said == [f"{cache.folder}: 75 of the run's 75 posts are in it unchanged; 50 posts are new to the run"]
    splits = tmp_path / "mine.csv"
    splits.write_text("id,split\n" + "".join(f"{number},test\n" for number in range(75, 125)))
    scored = evaluate(run, CPU, splits=splits)
    assert {post["id"] for post in scored["posts"]} == {str(number) for number in range(75, 125)}
    assert not scored["of"]["own_posts"]


def test_a_cache_that_grew_and_was_split_anew_is_scored_on_the_runs_test_posts_alone(cache, run, larger):
    """`extract --append` of a larger manifest that was split again: neither posts nor splits are as they were."""
    before = evaluate(run, CPU)
    grow(cache, larger)
    index_anew(cache, [changed(post, split=SPLITS[(SPLITS.index(post.split) + 1) % 3]) for post in posts_of(larger)])
    after = evaluate(run, CPU)
    assert [post["id"] for post in after["posts"]] == [post["id"] for post in before["posts"]]
    assert after["without_duplicates"] == before["without_duplicates"]
    assert after["versus_probe"] == before["versus_probe"]


def test_corrected_labels_are_those_of_evaluate_and_probe_alike(cache, run):
    row = cache.rows("test")[0]
    posts = posts_of(cache)
    other = next(label for label in LABELS if label != posts[row].label)
    posts[row] = changed(posts[row], label=other)
    corrected = index_anew(cache, posts)
    said = []
    result = evaluate(run, CPU, say=said.append)
    assert said == [f"{cache.folder}: 75 of the run's 75 posts are in it unchanged; 1 have another label"]
    assert next(post for post in result["posts"] if post["id"] == posts[row].id)["label"] == other
    linear = probe(corrected, "both")
    assert result["versus_probe"]["probe"]["accuracy"] == linear.test_accuracy


def test_labels_of_a_split_file_stay_those_of_the_run(cache, tmp_path):
    splits = tmp_path / "mine.csv"
    rows = [(post.id, LABELS[(LABELS.index(post.label) + 1) % 3], post.split) for post in posts_of(cache)]
    splits.write_text("id,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    run, _ = run_of(tmp_path / "mine", cache.with_splits(splits), *PLAIN)
    result = evaluate(run, CPU)
    assert {post["id"]: post["label"] for post in result["posts"]} == {
        id_: label for id_, label, split in rows if split == "test"
    }


def test_a_cache_that_other_posts_overwrote_is_not_taken_for_the_runs(cache, run, tmp_path):
    invoke("evaluate", run.folder, "--quiet")
    before = (run.folder / "evaluation-test.json").read_bytes()
    shutil.rmtree(cache.folder)
    write_cache(cache.folder, posts=75, seed=9, image_sha256=[f"{number:064x}" for number in range(500, 575)])
    with pytest.raises(InputError, match="no post of split 'test' has features and a label"):
        evaluate(run, CPU)
    assert "have another text or image" in run.open_cache().note
    line = refused("explain", run.folder, "--worst", 2, "--out", tmp_path / "out")
    assert "has another text or image than the one that was evaluated" in line
    invoke("report", run.folder, "--out", tmp_path / "report.html", "--quiet")
    page = (tmp_path / "report.html").read_text()
    assert "has another text or image than the one that was evaluated" in page
    assert (run.folder / "evaluation-test.json").read_bytes() == before


def test_runs_of_other_posts_under_the_same_ids_are_not_shown_side_by_side(cache, run, tmp_path):
    """The second run's words would stand in the first one's text."""
    invoke("evaluate", run.folder, "--quiet")
    other = write_cache(tmp_path / "other", posts=75, seed=9)
    second, _ = run_of(tmp_path / "second", other, *PLAIN)
    line = refused("explain", run.folder, "--worst", 2, "--compare", second.folder, "--out", tmp_path / "out")
    first = json.loads((run.folder / "evaluation-test.json").read_text())["posts"]
    assert f"{other.folder}: post " in line
    assert any(f"post {post['id']} has another text or image than in {cache.folder}" in line for post in first)
    assert "--cache" in line
    assert not (tmp_path / "out").exists()


def test_training_posts_under_new_ids_are_not_scored_as_unseen(cache, run, tmp_path):
    """Another cache of the same posts, all called test, under ids of its own."""
    posts = [changed(post, split="test") for post in posts_of(cache)]
    other = tmp_path / "other"
    shutil.copytree(cache.folder, other)
    renamed(other, posts)
    said = []
    result = evaluate(run, CPU, cache=other, say=said.append)
    test = {f"new-{id_}" for id_ in np.array(cache.ids)[cache.rows("test")]}
    assert {post["id"] for post in result["posts"]} == test
    assert result["of"]["left_out"] == 60
    assert "60 posts of split 'test' are left out: this run was trained or selected on the same ones" in said
    only = tmp_path / "only-training"
    shutil.copytree(cache.folder, only)
    renamed(only, [changed(post, split="test" if post.split == "train" else None) for post in posts_of(cache)])
    with pytest.raises(InputError, match="45 posts of split 'test', new-0 among them, were trained or selected on"):
        evaluate(run, CPU, cache=only)


def renamed(folder, posts):
    """Give the posts of a cache new ids, in its shards and its index."""
    import h5py

    fingerprint = Cache(folder).fingerprint
    for path in folder.glob("shard-*.h5"):
        with h5py.File(path, "r+") as file:
            ids = [f"new-{id_.decode()}" for id_ in file["post/id"][:]]
            kind = file["post/id"].dtype
            del file["post/id"]
            file["post"].create_dataset("id", data=ids, dtype=kind)
    listed = [changed(post, id=f"new-{post.id}") for post in posts]
    hdf5.write_index(folder, hdf5.in_shards(listed), fingerprint, names=MVSA_NAMES)


def test_duplicates_in_another_cache_are_those_of_the_runs_training_posts(cache, run, tmp_path):
    """Ten test posts repeat texts that the run was trained on, ten repeat training texts of the other cache alone."""
    other = write_cache(tmp_path / "other", posts=30, seed=4, image_sha256=hashes(900, 30))
    ours = [cache.texts[row] for row in cache.rows("train")[:10]]
    theirs = [f"what only the other cache says, {number}" for number in range(10)]
    texts = [*theirs, *(f"RT @someone: {text}!" for text in [*ours, *theirs])]
    posts = zip(posts_of(other), texts, strict=True)
    listed = [changed(post, text=text, split="train" if text in theirs else "test") for post, text in posts]
    index_anew(other, listed)
    result = evaluate(run, CPU, cache=other.folder)
    assert result["posts_used"] == 20
    assert result["without_duplicates"]["posts"] == 10
    right = [max(p["probabilities"], key=p["probabilities"].get) == p["label"] for p in result["posts"][10:]]
    assert result["without_duplicates"]["accuracy"] == pytest.approx(np.mean(right))


def test_a_split_file_whose_ids_a_spreadsheet_changed_trains_nothing(cache, tmp_path):
    """Ten of 75 ids are as they were; the others became 10.0, 11.0, ..."""
    splits = tmp_path / "splits.csv"
    ids = [post.id if int(post.id) < 10 else f"{post.id}.0" for post in posts_of(cache)]
    rows = zip(ids, posts_of(cache), strict=True)
    splits.write_text("id,split\n" + "".join(f"{id_},{post.split}\n" for id_, post in rows))
    for command in ("train", "probe", "sweep"):
        out = {"probe": (), "train": ("--out", tmp_path / "run"), "sweep": ("--out", tmp_path / "sweep", "--trials", 1)}
        (tmp_path / "space.yaml").write_text("lr: [1e-2]\n")
        space = ("--space", tmp_path / "space.yaml") if command == "sweep" else ()
        line = refused(command, cache.folder, *out[command], *space, "--splits", splits)
        assert "65 of its 75 ids are not in the cache" in line
        assert "'10.0' would match '10'; a spreadsheet may have changed it" in line
    assert not (tmp_path / "run").exists()


def test_a_cache_of_test_posts_alone_is_scored_with_the_probe_of_the_runs_own(cache, run, tmp_path):
    other = write_cache(tmp_path / "other", posts=30, seed=4, strength=3.0, image_sha256=hashes(900, 30))
    index_anew(other, [changed(post, split="test", text=f"an other text, {post.id}") for post in posts_of(other)])
    result = evaluate(run, CPU, cache=other.folder)
    assert result["posts_used"] == 30
    assert result["versus_probe"]["probe"]["accuracy"] > 0.4
    shutil.rmtree(cache.folder)
    alone = evaluate(run, CPU, cache=other.folder)
    assert alone["versus_probe"] is None
    assert f"{cache.folder}: no such cache" in alone["without_probe"]
    assert alone["accuracy"] == result["accuracy"]


def hashes(first, count):
    return [f"{number:064x}" for number in range(first, first + count)]


def test_other_posts_or_splits_have_an_evaluation_of_their_own(cache, run, tmp_path):
    invoke("evaluate", run.folder, "--quiet")
    plain = json.loads((run.folder / "evaluation-test.json").read_text())
    assert plain["of"]["own_posts"]
    assert plain["of"]["test_reads"] == 1
    splits = tmp_path / "half.csv"
    test = [cache.ids[row] for row in cache.rows("test")]
    splits.write_text("id,split\n" + "".join(f"{id_},test\n" for id_ in test[:8]))
    output = invoke("evaluate", run.folder, "--splits", splits)
    assert "67 of the 75 posts of the cache" in output
    (other,) = set(run.folder.glob("evaluation-test-*.json"))
    assert json.loads(other.read_text())["of"]["test_reads"] == 2
    assert json.loads((run.folder / "evaluation-test.json").read_text()) == plain
    assert "already exists" in refused("evaluate", run.folder)
    assert "already exists" in refused("evaluate", run.folder, "--splits", splits)


def test_a_part_of_the_runs_posts_and_other_labels_have_an_evaluation_of_their_own(cache, run, tmp_path):
    posts = posts_of(cache)
    labels = dict(zip(LABELS, LABELS[1:] + LABELS[:1], strict=True))
    others = {
        "relabelled": [changed(post, label=labels[post.label]) for post in posts],
        "same": posts,
    }
    for name, listed in others.items():
        shutil.copytree(cache.folder, tmp_path / name)
        index_anew(Cache(tmp_path / name), listed)
    write_cache(tmp_path / "fewer", posts=70, image_sha256=[f"{125 + number:064x}" for number in range(70)])
    for name in (*others, "fewer"):
        folder = tmp_path / name
        invoke("evaluate", run.folder, "--cache", folder, "--quiet")
        own = run.folder / "evaluation-test.json"
        keyed = list(run.folder.glob("evaluation-test-*.json"))
        assert (own.is_file(), len(keyed)) == ((True, 0) if name == "same" else (False, 1)), name
        for path in (*keyed, own):
            path.unlink(missing_ok=True)


def test_an_evaluation_of_other_weights_is_not_taken_for_the_runs(cache, run, tmp_path):
    invoke("evaluate", run.folder, "--quiet")
    other, _ = run_of(tmp_path / "other", cache, *PLAIN, "seed=7")
    shutil.copy(run.folder / "evaluation-test.json", other.folder)
    for command in ("report", "export"):
        line = refused(command, other.folder, "--out", tmp_path / command)
        assert "evaluation-test.json: is of other weights than the run's; evaluate the run again" in line
    invoke("evaluate", other.folder, "--quiet", "--overwrite")
    invoke("report", other.folder, "--out", tmp_path / "report", "--quiet", "--worst", 0)


@pytest.mark.parametrize("later", [False, True])
def test_of_two_posts_of_one_content_the_trained_one_counts(later, cache, tmp_path):
    """One is a training post and one a test post of the run; under a new id the content was trained on."""
    posts = posts_of(cache)
    train_rows = [row for row, post in enumerate(posts) if post.split == "train"]
    train_row = train_rows[0] if later else train_rows[-1]
    test_row = next(row for row, post in enumerate(posts) if post.split == "test" and (row > train_row) == later)
    run_posts = run_posts_of(cache)
    by_id = {post.id: number for number, post in enumerate(run_posts)}
    trained, tested = run_posts[by_id[posts[train_row].id]], by_id[posts[test_row].id]
    run_posts[tested] = replace(trained, id=run_posts[tested].id, split="test")
    match = PostMatch([replace(post, id=f"old-{post.id}") for post in run_posts], cache)
    assert SPLITS[match.used_as(np.array([train_row]))[0]] == "train"


def test_a_fit_is_not_resumed_on_another_split(cache, tmp_path, monkeypatch):
    """A kill, a new split of the same posts, and the same command again."""
    spec = TableSpec(
        cache.folder, tmp_path / "tables", "2", load_config(settings=("width=8", "heads=2", *PLAIN)), "cpu"
    )
    saved = Run.save_state

    def killed(self, *rest):
        saved(self, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce(spec)
    index_anew(cache, [changed(post, split=SPLITS[(SPLITS.index(post.split) + 1) % 3]) for post in posts_of(cache)])
    with pytest.raises(InputError, match="other splits or labels than those of the unfinished run"):
        reproduce(spec)


def test_an_unfinished_run_resumes_on_a_cache_that_grew_as_if_it_had_not(cache, larger, tmp_path):
    whole, _ = run_of(tmp_path / "whole", cache, "mlm=false", "epochs=3")

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", cache, "mlm=false", "epochs=3", on_epoch=stop)
    run = Run(tmp_path / "run")
    ours = run.resume_or_start(run.config, larger)
    run_of(tmp_path / "run", ours, "mlm=false", "epochs=3")
    assert (run.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_two_trainings_do_not_share_a_folder(cache, run, tmp_path):
    from pipeline.common.locks import only_writer

    folder = tmp_path / "taken"
    folder.mkdir()
    with only_writer(folder), pytest.raises(InputError, match="is writing; wait for it"):
        run_of(folder, cache, *PLAIN)
    assert list(folder.iterdir()) == []
    with only_writer(run.folder):
        line = refused("train", cache.folder, "--out", run.folder, "--overwrite", "--set", "mlm=false")
    assert "is writing; wait for it" in line
    assert run.finished


def test_a_post_that_had_failed_is_none_of_the_runs_once_it_has_features(cache, tmp_path):
    """As where a decoding process was killed: a retry, and the same bytes have features."""
    rows = [cache.rows("train")[0], cache.rows("test")[0]]
    then = Cache(cache.folder)
    then.ok = then.ok.copy()
    then.ok[rows] = False
    run, _ = run_of(tmp_path / "run", then, *PLAIN)
    opened = run.open_cache()
    assert opened.note.endswith(": 73 of the run's 75 posts are in it unchanged; 2 had failed and have features now")
    assert opened.cache.splits[rows].tolist() == [-1, -1]
    assert cache.ids[rows[1]] not in {post["id"] for post in evaluate(run, CPU)["posts"]}
    assert run.difference_to(cache) == "other splits or labels"
    assert run.difference_to(then) == ""


def test_a_post_that_has_failed_since_is_gone(cache, run):
    now = Cache(cache.folder)
    now.ok = now.ok.copy()
    now.ok[cache.rows("test")[:2]] = False
    match = PostMatch(read_posts(run.splits), now)
    assert (match.matched, match.gone, match.new, match.changed, match.retried) == (73, 2, 0, 0, 0)
    assert run.difference_to(now) == "other posts"


def test_a_post_without_a_text_takes_no_hash_from_the_others(cache):
    posts = [RunPost("textless", "neutral", "train", "", "", "", True), *run_posts_of(cache)]
    match = PostMatch(posts, cache)
    assert match.hashed
    assert (match.matched, match.gone) == (75, 1)


@pytest.mark.parametrize("finished", [False, True])
def test_a_training_that_another_one_overtook_does_not_write_over_it(finished, cache, tmp_path):
    """Both looked into the empty folder; the second one locked it when the first one had ended, or was killed."""
    second = load_config(settings=(*SMALL, *PLAIN, "seed=1"))
    ours = Run(tmp_path / "run").resume_or_start(second, cache)

    def stop(line):
        raise KeyboardInterrupt

    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", cache, *PLAIN, **({} if finished else {"on_epoch": stop}))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="this run is finished" if finished else "unfinished run with seed 0, not 1"):
        train(ours, second, Run(tmp_path / "run"), CPU, quiet=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_an_old_run_without_hashes_opens_and_says_what_is_not_checked(cache, run, larger):
    with run.splits.open() as file:
        rows = list(csv.DictReader(file))
    run.splits.write_text("id,label,split\n" + "".join(f"{r['id']},{r['label']},{r['split']}\n" for r in rows))
    assert run.open_cache().note == ""  # the cache is the one that it was trained from
    before = evaluate(run, CPU)
    index_anew(cache, posts_of(cache))
    assert evaluate(run, CPU)["accuracy"] == before["accuracy"]
    grow(cache, larger)
    note = run.open_cache().note
    assert note.endswith("the run keeps no hashes of its posts: whether they are the same is checked by id alone")


@pytest.mark.parametrize("options", [("--splits", "none.csv"), ("--text-encoder", "none"), ("--set", "views=sample")])
def test_a_run_is_overwritten_only_when_all_that_training_needs_is_there(options, cache, run):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    refused("train", cache.folder, "--out", run.folder, "--overwrite", "--quiet", "--device", "cpu", *options)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    assert "this run is finished, there is nothing to resume" in refused(
        "train", cache.folder, "--out", run.folder, "--resume"
    )
