"""Several views of an image: what each shows, how they lie in a cache, which an epoch sees, how they are averaged."""

import pickle

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from fusion.config import load_config
from fusion.data.batches import chunks, read_batch, sampled_views
from fusion.data.feature_store import FeatureStore
from fusion.evaluation.evaluate import controls
from fusion.evaluation.predict import predict_rows
from fusion.inference.predictor import Predictor, RawPost
from fusion.run import Run
from fusion.training.train import ExecutionOptions
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.from_fingerprint import same_image_encoder
from pipeline.encoders.load import EncoderChoice, NoImages, load_image_encoder
from pipeline.encoders.transform import picture_transform
from pipeline.encoders.views import VIEWS, first_view
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import Changes, Part, Plan, feature_bytes
from pipeline.extraction.verify import encode_again
from pipeline.posts.manifest import write_manifest
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import invoke, refused
from tests.helpers.extraction import SHARD, shard_bytes, stop_after, tiny_posts
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.toy import FINGERPRINT, MVSA_NAMES, write_cache
from tests.helpers.training import CPU, lines_of, run_of, trained
from tests.helpers.transforms import Mirrors

NAMES = {"label": LABELS}


@pytest.fixture(scope="module")
def transform():
    """Resized to a shorter side of 10, then 8 x 8 out of the middle."""
    return create_transform((3, 8, 8), crop_pct=0.8, interpolation="nearest", normalize=False)


@pytest.fixture(scope="module")
def picture():
    """20 x 10 pixels, which need no resizing: red counts columns, green rows."""
    y, x = np.mgrid[:10, :20].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2))


def test_each_view_shows_its_own_part_of_the_picture(transform, picture):
    pixels = picture_transform(transform.transforms, "toy", 6)(picture)
    assert (pixels.shape, pixels.dtype) == ((6, 3, 8, 8), np.uint8)
    corners = {name: (view[0, 0, 0], view[1, 0, 0]) for name, view in zip(VIEWS, pixels, strict=True)}  # column, row
    assert corners == {
        "center": (6, 1),
        "flip": (13, 1),
        "top_left": (0, 0),
        "bottom_right": (12, 2),
        "top_right": (12, 0),
        "bottom_left": (0, 2),
    }
    np.testing.assert_array_equal(pixels[0], np.asarray(transform(picture)))
    np.testing.assert_array_equal(pixels[1], pixels[0][:, :, ::-1])
    for view in pixels[2:]:
        np.testing.assert_array_equal(view[0], view[0, 0, 0] + np.arange(8)[None] + np.zeros((8, 1)))
        np.testing.assert_array_equal(view[1], view[1, 0, 0] + np.arange(8)[:, None] + np.zeros((1, 8)))


def test_fewer_views_are_the_first_ones_and_workers_get_the_same(transform, picture):
    whole = picture_transform(transform.transforms, "toy", 6)(picture)
    for count in (2, 3, 5):
        fewer = pickle.loads(pickle.dumps(picture_transform(transform.transforms, "toy", count)))
        np.testing.assert_array_equal(fewer(picture), whole[:count])
    np.testing.assert_array_equal(first_view(whole), whole[0])
    np.testing.assert_array_equal(first_view(whole[2]), whole[2])


def test_a_transform_without_a_centre_and_numbers_that_make_no_sense_are_refused():
    border = create_transform((3, 8, 8), crop_pct=0.8, crop_mode="border", normalize=False)
    with pytest.raises(InputError, match="views=2: the transform of toy does not cut out the centre"):
        picture_transform(border.transforms, "toy", 2)
    for count in (0, 7):
        with pytest.raises(InputError, match=rf"views={count}: there are 1 to 6: center, flip"):
            load_image_encoder(EncoderChoice(preset="packaged", device="cpu", views=count))
    with pytest.raises(InputError, match="views=2: with image_encoder=none there is nothing to view"):
        load_image_encoder(EncoderChoice(image="none", device="cpu", views=2))


@pytest.fixture(scope="module")
def two_views():
    return load_image_encoder(EncoderChoice(preset="packaged", device="cpu", views=2))


def test_the_encoder_encodes_each_view_as_a_picture(two_views, image_encoder):
    photo = Image.effect_noise((260, 240), 60).convert("RGB")
    pixels = two_views.pixels(photo)
    assert pixels.shape == two_views.pixels_shape == (2, 3, 224, 224)
    np.testing.assert_array_equal(pixels[0], image_encoder.pixels(photo))
    patches, pooled = two_views.encode(np.stack([pixels, pixels[::-1]]))
    assert (patches.shape, pooled.shape) == ((2, 2, 49, 1280), (2, 2, 1280))
    for view in (0, 1):
        alone, mean = image_encoder.encode(pixels[view][None])
        np.testing.assert_allclose(patches[0, view], alone[0], atol=1e-4)
        np.testing.assert_allclose(pooled[1, 1 - view], mean[0], atol=1e-4)
    assert two_views.describe() == "tf_efficientnet_lite0.in1k (2 views of 49 x 1280)"
    assert two_views.fingerprint["views"] == ["center", "flip"]


def test_a_fingerprint_that_says_nothing_of_views_is_of_one(image_encoder, two_views):
    marks = {name: value for name, value in image_encoder.fingerprint.items() if name != "views"}
    assert same_image_encoder(marks, "cpu", owner="a cache").fingerprint == image_encoder.fingerprint
    again = same_image_encoder(two_views.fingerprint, "cpu", owner="a cache")
    assert (again.fingerprint, again.pixels_shape) == (two_views.fingerprint, two_views.pixels_shape)


class ThreeViews(TinyImage):
    """FeatureStore that are the pixels of each view."""

    pixels_shape = (3, 3, 2, 2)
    transform = Mirrors()
    fingerprint = {"name": "tiny", "views": ["center", "flip", "top_left"]}  # noqa: RUF012

    def encode(self, pixels):
        patches, pooled = super().encode(pixels.reshape(-1, 3, 2, 2))
        return patches.reshape(-1, 3, 4, 3), pooled.reshape(-1, 3, 3)


class Still(ThreeViews):
    """The same outside of an extraction."""

    def pixels(self, picture):
        return self.transform(picture)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)

    def call(posts, out, *, image=None, **options):
        return extract(posts, out, image or ThreeViews(), TinyText(), **{"batch_size": 3, "quiet": True, **options})

    return call


def test_every_view_lies_in_the_shards_and_is_mapped_without_a_copy(make, tmp_path):
    posts = tiny_posts(tmp_path / "posts", SHARD + 3)
    pictures = [np.asarray(Image.open(post.image)) for post in posts]
    posts[5].image.write_bytes(b"")
    make(posts, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert (cache.views, cache.patches_shape) == (3, (4, 3))
    for row, pixels in enumerate(pictures):
        expected = [pixels, pixels[:, ::-1], pixels[::-1]]
        for view in range(3):
            found, pooled = cache.patches(row, view), cache.pooled(row, view)
            for array in (found, pooled):
                assert (array.flags.owndata, array.flags.writeable) == (False, False)
            wanted = np.zeros((4, 3)) if row == 5 else expected[view].reshape(4, 3)
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_allclose(pooled, wanted.mean(axis=0), rtol=1e-3)
    np.testing.assert_array_equal(cache.patches(2), cache.patches(2, 0))
    rows, views = np.array([9, 0, 5, 8, 8]), np.array([2, 1, 1, 0, 2])
    patches, pooled = cache.gather_images(rows, views=views)
    for place, (row, view) in enumerate(zip(rows, views, strict=True)):
        np.testing.assert_array_equal(patches[place], cache.patches(row, view))
        np.testing.assert_array_equal(pooled[place], cache.pooled(row, view))
    assert cache.damage() == []
    with h5py.File(tmp_path / "cache" / "index.h5") as index:
        assert index["/image/patches"].shape == (SHARD + 3, 3, 4, 3)
        assert index["/image/pooled"].shape == (SHARD + 3, 3, 3)
        np.testing.assert_array_equal(index["/image/patches"][9, 2], cache.patches(9, 2))
    posts[5].image.write_bytes(posts[6].image.read_bytes())
    assert encode_again(cache, Still(), TinyText(), count=9) == []


def test_views_are_the_same_bytes_however_the_cache_was_made(make, tmp_path, monkeypatch):
    posts = tiny_posts(tmp_path / "posts", 3 * SHARD - 2)
    make(posts, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(InputError, match="the same command resumes"):
            make(posts, tmp_path / "stopped")
    make(posts, tmp_path / "stopped")
    make(posts[:-3], tmp_path / "grown")
    make(posts, tmp_path / "grown", changes=Changes(append=True))
    for name in ("stopped", "grown"):
        assert shard_bytes(tmp_path / name) == shard_bytes(tmp_path / "whole"), name
    make(posts, tmp_path / "part", part=Part(2, 2))
    assert shard_bytes(tmp_path / "part")["shard-00001.h5"] == shard_bytes(tmp_path / "whole")["shard-00001.h5"]
    with pytest.raises(InputError, match=r"computed by other encoders; image\.views: "):
        make(posts, tmp_path / "whole", image=TinyImage())


def test_room_is_asked_for_every_view_and_for_none_where_there_are_no_images(tmp_path):
    todo = Plan([], {0: tiny_posts(tmp_path / "posts", 5)}, [0], Part())
    three, one, none = (
        feature_bytes(todo, image, TinyText(), "float16") for image in (ThreeViews(), TinyImage(), NoImages(CPU))
    )
    image = (4 + 1) * 3 * 2  # patches and pooled of one view, in bytes
    assert (three - one, one - none) == (5 * 2 * image, 5 * image)


def test_a_view_that_is_not_finite_fails_its_post_alone(make, tmp_path):
    class Broken(ThreeViews):
        def encode(self, pixels):
            patches, pooled = super().encode(pixels)
            if len(pixels) == 2:  # the last batch
                patches[1, 2, 3, 0] = np.inf
            return patches, pooled

    report = make(tiny_posts(tmp_path / "posts", 5), tmp_path / "cache", image=Broken())
    assert report.failed == {"4": "features: not finite in float16"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("views") / "cache", views=3)


def test_which_view_is_seen_is_decided_by_seed_and_epoch_alone():
    first = sampled_views(211, 3, seed=5, epoch=1)
    np.testing.assert_array_equal(first, sampled_views(211, 3, seed=5, epoch=1))
    assert set(first.tolist()) == {0, 1, 2}
    assert np.bincount(first).min() > 50
    for other in (sampled_views(211, 3, seed=6, epoch=1), sampled_views(211, 3, seed=5, epoch=2)):
        assert 0.2 < np.mean(first == other) < 0.5


@pytest.mark.parametrize("place", ["map", "ram"])
def test_batches_show_the_asked_views_wherever_the_features_lie(cache, place):
    rows = np.concatenate([cache.rows("val"), cache.rows("train")])
    views = sampled_views(len(cache), 3, seed=0, epoch=1)
    features = FeatureStore(cache, rows, CPU, place, views=3)
    batches = list(chunks(rows[::-1].copy(), 7))
    for found, wanted in zip(features.batches(batches, views), batches, strict=True):
        for place_in_batch, row in enumerate(wanted):
            np.testing.assert_array_equal(found.patches[place_in_batch].numpy(), cache.patches(row, views[row]))
            np.testing.assert_array_equal(found.pooled[place_in_batch].numpy(), cache.pooled(row, views[row]))
    if place == "ram":
        assert features.bytes == sum(tensor.numel() * tensor.element_size() for tensor in features._stored[:5])
    first = next(features.batches(batches))
    np.testing.assert_array_equal(first.patches[3].numpy(), cache.patches(batches[0][3]))


def test_the_first_view_alone_is_a_cache_of_one_view_to_the_last_bit(cache, tmp_path):
    """With views: first, whatever else lies in the cache."""
    one = tmp_path / "one"
    one.mkdir()
    posts = hdf5.read_posts(cache.folder)
    patches = np.stack([cache.patches(row) for row in range(len(cache))])
    tokens, ids = ([read(row) for row in range(len(cache))] for read in (cache.tokens, cache.input_ids))
    features = hdf5.ShardFeatures(cache.records, patches, patches.mean(axis=1), tokens, ids)
    hdf5.write_shard(one / hdf5.shard_name(0), features, FINGERPRINT)
    hdf5.write_index(one, {0: posts}, FINGERPRINT, names=MVSA_NAMES)
    runs = [run_of(tmp_path / name, which)[0] for name, which in (("many", cache), ("single", Cache(one)))]
    assert lines_of(runs[0]) == lines_of(runs[1])
    assert (runs[0].folder / "model.safetensors").read_bytes() == (runs[1].folder / "model.safetensors").read_bytes()


def test_answers_are_the_mean_over_the_views_only_if_views_were_sampled(cache, tmp_path):
    """Against a loop over posts and views, each in a batch of its own."""
    rows = cache.rows("test")
    for views, count in (("sample", 3), ("first", 1)):
        run, _ = run_of(tmp_path / views, cache, f"views={views}", "mlm=false", "epochs=2")
        model = run.load_model(CPU)
        expected = np.zeros((len(rows), 3))
        for place, row in enumerate(rows):
            for view in range(count):
                batch = read_batch(cache, [row], CPU, views=np.array([view]))
                with torch.no_grad():
                    expected[place] += model(batch).double().softmax(dim=1)[0].numpy() / count
        found = predict_rows(model, cache, rows, CPU)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        single = np.stack([cache.patches(row, 1) for row in rows])
        assert not np.array_equal(single, np.stack([cache.patches(row) for row in rows]))
        np.testing.assert_allclose(predict_rows(model, cache, rows, CPU, image_rows=rows), expected, atol=1e-6)
        assert controls(model, cache, rows, CPU).keys() == {"image_shuffled", "text_shuffled"}


def test_sampling_repeats_resumes_and_is_the_same_from_memory(cache, tmp_path, monkeypatch):
    whole, _ = run_of(tmp_path / "whole", cache, "views=sample")
    first, _ = run_of(tmp_path / "first", cache, "views=first")
    ram, _ = run_of(tmp_path / "ram", cache, "views=sample", execution=ExecutionOptions(cache_in="ram"))
    saves = []
    original = Run.save_state

    def save_then_stop(self, *arguments):
        original(self, *arguments)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "stopped", cache, "views=sample")
    stopped, _ = run_of(tmp_path / "stopped", cache, "views=sample")
    assert lines_of(whole) == lines_of(ram) == lines_of(stopped) != lines_of(first)
    kept = (whole.folder / "model.safetensors").read_bytes()
    assert kept == (stopped.folder / "model.safetensors").read_bytes()


def test_sampling_needs_several_views_and_an_image(tmp_path):
    single = write_cache(tmp_path / "single")
    options = ("--set", "mlm=false", "--set", "views=sample", "--out", tmp_path / "run")
    assert "has one view of each image; for views sample extract with --views" in refused(
        "train", single.folder, *options
    )
    with pytest.raises(InputError, match="views: no image to see when modalities is text"):
        load_config(settings=("modalities=text", "mask_choice=random", "views=sample"))


@pytest.mark.parametrize("views", ["sample", "first"])
def test_a_raw_post_gets_the_answer_that_it_gets_from_the_cache(views, two_views, text_encoder, drawn_posts, tmp_path):
    extract(drawn_posts, tmp_path / "cache", two_views, text_encoder, names=NAMES, workers=1, quiet=True)
    cache = Cache(tmp_path / "cache")
    run = trained(cache, tmp_path / "run", f"views={views}")
    predictor = Predictor(run, run.load_model(CPU), two_views, text_encoder, CPU)
    by_id = {post.id: post for post in drawn_posts}
    posts = [by_id[id_] for id_ in cache.ids]
    cached = predict_rows(predictor.model, cache, np.arange(len(cache)), CPU)
    answers = predictor.predict([RawPost(post.id, post.text, post.image.read_bytes()) for post in posts[:7]])
    found = np.array([[answer.probabilities[label] for label in LABELS] for answer in answers])
    np.testing.assert_allclose(found, cached[:7], atol=1e-3)
    one_view = predictor.model.config.model_copy(update={"views": "first"})
    predictor.model.config = one_view
    assert (np.abs(predict_rows(predictor.model, cache, np.arange(7), CPU) - cached[:7]).max() > 1e-3) == (
        views == "sample"
    )


def test_the_commands_go_the_whole_way_with_views(drawn_posts, tmp_path):
    write_manifest(tmp_path / "m.jsonl", drawn_posts, NAMES)
    output = invoke("extract", tmp_path / "m.jsonl", "--out", tmp_path / "c", "--encoders", "packaged", "--views", "3")
    assert "(3 views of 49 x 1280)" in output
    settings = ("width=16", "heads=2", "layers=1", "epochs=1", "mlm=false", "views=sample")
    options = [part for setting in settings for part in ("--set", setting)]
    invoke("train", tmp_path / "c", "--out", tmp_path / "run", *options, "--quiet")
    invoke("evaluate", tmp_path / "run", "--quiet")
    post = drawn_posts[0]
    (tmp_path / "posts.jsonl").write_text("".join((tmp_path / "m.jsonl").read_text().splitlines(keepends=True)[:2]))
    invoke("predict", tmp_path / "run", tmp_path / "posts.jsonl", "--out", tmp_path / "out.jsonl", "--quiet")
    options = ("--image", post.image, "--text", post.text, "--json", tmp_path / "one.json", "--quiet")
    invoke("predict", tmp_path / "run", *options)
    invoke("explain", tmp_path / "run", "--ids", post.id, "--out", tmp_path / "look", "--quiet")
    invoke("inspect", tmp_path / "c", "--verify", "--re-encode", "2", "--quiet")
