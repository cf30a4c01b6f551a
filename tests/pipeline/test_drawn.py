"""The drawn data set: a valid MVSA folder, equal for equal seeds, with work for the label rule and without tells."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kruskal
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import cross_val_score

from pipeline.demo.dataset import draw

Votes = list[tuple[str, str]]
LABELS = {"positive", "neutral", "negative"}
ENDS = (slice(None, 4), slice(-4, None))


def read_rows(folder: Path) -> dict[str, Votes]:
    """Id -> one (text label, image label) per annotator, as the label file has them."""
    _header, *lines = (folder / "labelResultAll.txt").read_text("ascii").splitlines()
    rows = {}
    for line in lines:
        post, *pairs = line.split("\t")
        rows[post] = [(pair.split(",")[0], pair.split(",")[1]) for pair in pairs]
    return rows


def read_text(folder: Path, post: str) -> str:
    return (folder / "data" / f"{post}.txt").read_bytes().decode("gb18030")


def majority(votes: list[str]) -> str | None:
    """The label of the only annotator, or that of at least two of three."""
    label, count = Counter(votes).most_common(1)[0]
    return label if 2 * count > len(votes) else None


def merge(text: str | None, image: str | None) -> str | None:
    """Xu & Mao's rule, written out for this test alone."""
    if text is None or image is None:
        return None
    if text == image or image == "neutral":
        return text
    return image if text == "neutral" else None


def agreed_labels(rows: dict[str, Votes]) -> dict[str, tuple[str | None, str | None]]:
    return {post: (majority([t for t, _ in votes]), majority([i for _, i in votes])) for post, votes in rows.items()}


def final_labels(rows: dict[str, Votes]) -> dict[str, str | None]:
    return {post: merge(*pair) for post, pair in agreed_labels(rows).items()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "single", posts=400, seed=1)


@pytest.fixture(scope="module")
def multiple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "multiple", posts=100, seed=1, form="multiple")


@pytest.mark.parametrize(("form", "annotators"), [("single", 1), ("multiple", 3)])
def test_is_an_mvsa_folder(form: str, annotators: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(form)
    header = (folder / "labelResultAll.txt").read_text("ascii").splitlines()[0]
    assert header == "\t".join(["ID", *["text,image"] * annotators])
    rows = read_rows(folder)
    assert list(rows) == [str(number) for number in range(1, len(rows) + 1)]
    assert all(len(votes) == annotators and {*sum(votes, ())} <= LABELS for votes in rows.values())
    names = {path.name for path in (folder / "data").iterdir()}
    assert names == {f"{post}.{kind}" for post in rows for kind in ("jpg", "txt")}
    assert any(not read_text(folder, post).isascii() for post in rows)
    for post in rows:
        assert read_text(folder, post).strip()
        with Image.open(folder / "data" / f"{post}.jpg") as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 200 <= min(image.size) <= max(image.size) <= 360


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["single", "multiple"])
def test_same_seed_same_bytes_whatever_the_global_state(form: str, tmp_path: Path) -> None:
    first = contents(draw(tmp_path / "first", posts=20, seed=3, form=form))
    random.seed(99)
    np.random.seed(99)
    state = random.getstate()
    assert contents(draw(tmp_path / "again", posts=20, seed=3, form=form)) == first
    assert random.getstate() == state
    other = contents(draw(tmp_path / "other", posts=20, seed=4, form=form))
    assert other.keys() == first.keys()
    assert sum(other[name] == first[name] for name in first) == 0


@pytest.mark.parametrize(("form", "posts"), [("single", 400), ("multiple", 100)])
def test_the_rule_has_work_to_do(form: str, posts: int, request: pytest.FixtureRequest) -> None:
    rows = read_rows(request.getfixturevalue(form))
    final = final_labels(rows)
    survivors = Counter(label for label in final.values() if label)
    assert sum(survivors.values()) == posts
    assert min(survivors[label] for label in LABELS) > 0.15 * posts

    cells = Counter(agreed_labels(rows).values())
    assert cells["positive", "negative"]
    assert cells["negative", "positive"]
    for label in ("positive", "negative"):  # each modality decides some posts alone
        assert cells[label, "neutral"] > 0.05 * posts
        assert cells["neutral", label] > 0.05 * posts
    assert any(None in pair for pair in cells) == (form == "multiple")
    assert any(len({*votes}) == 2 for votes in rows.values()) == (form == "multiple")


def test_neither_modality_alone_is_enough(single: Path) -> None:
    """Even a perfect reader of one modality, who answers with the commonest final label, stays well below 80 %."""
    rows, final = read_rows(single), final_labels(read_rows(single))
    for modality in (0, 1):
        seen = Counter((votes[0][modality], final[post]) for post, votes in rows.items() if final[post])
        right = sum(max(count for (own, _), count in seen.items() if own == label) for label in LABELS)
        assert 0.7 < right / 400 < 0.78


def test_some_posts_repeat_a_text_under_another_picture(single: Path) -> None:
    def words(text: str) -> str:
        return re.sub(r"[\W_]", "", re.sub(r"^rt|https?://\S*|@\w+", "", text.lower()))

    posts = list(read_rows(single))
    repeats = len(posts) - len({words(read_text(single, post)) for post in posts})
    assert 4 <= repeats <= 30
    assert len({(single / "data" / f"{post}.jpg").read_bytes() for post in posts}) == len(posts)


def outward_signs(folder: Path, post: str) -> list[float]:
    """What can be told of a post without reading its words or looking at its scene."""
    text, file = read_text(folder, post), folder / "data" / f"{post}.jpg"
    with Image.open(file) as image:
        pixels = np.asarray(image, dtype=float)
    height, width, _ = pixels.shape
    corners = np.concatenate([pixels[rows, columns].reshape(-1, 3) for rows in ENDS for columns in ENDS])
    size = file.stat().st_size
    shape = [int(post), width, height, width / height, size, size / (width * height), *corners.mean(0)]
    counts = [text.count(sign) for sign in ("#", "@", "http", "RT ", "!", ".", ":")]
    return [*shape, len(text), len(text.split()), *counts]


def test_nothing_but_the_content_tells_the_label(single: Path) -> None:
    """Neither one outward sign nor a forest over all of them knows the text's, the image's or the final label."""
    rows, final = read_rows(single), final_labels(read_rows(single))
    posts = [post for post, label in final.items() if label]
    signs = np.array([outward_signs(single, post) for post in posts])
    for name, labels in (
        ("text", np.array([rows[post][0][0] for post in posts])),
        ("image", np.array([rows[post][0][1] for post in posts])),
        ("final", np.array([final[post] for post in posts])),
    ):
        p_values = [kruskal(*(column[labels == label] for label in LABELS)).pvalue for column in signs.T]
        assert min(p_values) > 0.01 / (3 * len(p_values)), f"{name} label, sign {np.argmin(p_values)}"
        forest = ExtraTreesClassifier(60, min_samples_leaf=5, class_weight="balanced", random_state=0)
        accuracy = cross_val_score(forest, signs, labels, cv=5, scoring="balanced_accuracy").mean()
        # Chance is a third; one standard error of it on 400 posts is 0.024.
        assert accuracy < 1 / 3 + 4 * 0.024, f"{name} label: {accuracy:.3f}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"posts": 19}, "posts must be at least 20, .* not 19"),
        ({"seed": -1}, "seed must not be negative, but is -1"),
        ({"form": "triple"}, "form must be 'single' or 'multiple', not 'triple'"),
    ],
)
def test_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "drawn", **arguments)
    assert not (tmp_path / "drawn").exists()
