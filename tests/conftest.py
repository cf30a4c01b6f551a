"""What several test files share: the packaged encoders, loaded once, and a tiny run trained on drawn posts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.inference.predictor import Predictor
from fusion.run import Run
from fusion.training.train import train
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.files import write_json
from pipeline.demo import dataset as drawn
from pipeline.encoders.load import EncoderChoice, ImageEncoder, TextEncoder, load_image_encoder, load_text_encoder
from pipeline.extraction.extract import extract
from pipeline.posts.manifest import Post
from pipeline.posts.mvsa import LABELS
from pipeline.posts.prepare import prepare
from tests.helpers.browser import Window, chromium, visit, window
from tests.helpers.commands import SMALL
from tests.helpers.hostile import Commands, forking
from tests.helpers.processes import in_this_process
from tests.helpers.server import Server, serving
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU, trained


@pytest.fixture(scope="session", autouse=True)
def own_user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoders that lie ready in the user's folder must decide nothing here, in this process or in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))
        patch.setenv("ORT_DISABLE_TELEMETRY", "1")  # of tests that import onnxruntime themselves
        yield


@pytest.fixture(scope="module", autouse=True)
def read_in_this_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests trust the caches that they write, except in files marked `apart`: forking a process of some GiB at each
    of their 1,500 openings took a fifth of the suite's time. Commands in processes of their own always read apart.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("apart"):
            patch.setattr(hdf5, "apart", in_this_process)
        yield


@pytest.fixture(scope="session")
def image_encoder() -> ImageEncoder:
    return load_image_encoder(EncoderChoice(preset="packaged", device="cpu"))


@pytest.fixture(scope="session")
def text_encoder() -> TextEncoder:
    return load_text_encoder(EncoderChoice(preset="packaged", device="cpu"))


@pytest.fixture(scope="session")
def drawn_posts(tmp_path_factory: pytest.TempPathFactory) -> list[Post]:
    """Some thirty posts of the demonstration's kind, with splits."""
    folder = tmp_path_factory.mktemp("drawn") / "mvsa"
    drawn.replace(folder, posts=31, seed=0)
    return prepare(folder, ratios=[4, 3, 3], seed=0).posts


@pytest.fixture(scope="session")
def drawn_cache(
    drawn_posts: list[Post],
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Cache:
    folder = tmp_path_factory.mktemp("drawn") / "cache"
    extract(drawn_posts, folder, image_encoder, text_encoder, names={"label": LABELS}, workers=1, quiet=True)
    return Cache(folder)


@pytest.fixture(scope="session")
def tiny_run(drawn_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(drawn_cache, tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def predictor(tiny_run: Run, image_encoder: ImageEncoder, text_encoder: TextEncoder) -> Predictor:
    return Predictor(tiny_run, tiny_run.load_model(CPU), image_encoder, text_encoder, CPU)


@pytest.fixture(scope="session")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, a finished and evaluated run of it, and one that was stopped after an epoch, to copy and damage."""
    folder = tmp_path_factory.mktemp("run_folders")
    cache = write_cache(folder / "cache", posts=61)
    config = load_config(settings=(*SMALL, "mlm=false", "epochs=2"))
    run = Run(folder / "run")
    train(cache, config, run, CPU, quiet=True)
    write_json(run.folder / "evaluation-test.json", evaluate(run, CPU))

    def stop(line: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, config, Run(folder / "stopped"), CPU, quiet=True, on_epoch=stop)
    return folder


@pytest.fixture(scope="session")
def server(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`serve` in a process of its own, which answers to the name box.lan too."""
    with serving(tiny_run.folder, tmp_path_factory.mktemp("server"), "--allow-host", "box.lan") as server:
        yield server


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Runs commands on hostile input, each in a process with a memory and a time limit."""
    with forking() as commands:
        yield commands


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the session: its event loop would be in the way of other files' tests."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, server: Server) -> Iterator[Window]:
    """The server's page on a desk, with what it asked for and what failed in it."""
    with window(browser, viewport={"width": 1280, "height": 900}) as opened:
        visit(opened.page, server.address)
        yield opened


@pytest.fixture
def page(opened: Window) -> Page:
    return opened.page
