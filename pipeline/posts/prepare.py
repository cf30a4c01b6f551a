"""Makes a manifest of a data set in any format: reads it, names its labels, splits its posts, and counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.remote import allowing, is_url
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions, format_of
from pipeline.posts.image_files import is_there
from pipeline.posts.labels import LABEL, require_names
from pipeline.posts.manifest import SPLITS, Post, names_of
from pipeline.posts.shown import shown
from pipeline.posts.source_set import files_of
from pipeline.posts.spelling import respelled, spelling_facts, spellings
from pipeline.posts.splits import class_counts, duplicates_of_training, given_split, hold_out, stratified_split

RATIOS = (8.0, 1.0, 1.0)
MOST_REJECTED = 0.05


@dataclass(frozen=True)
class Prepared:
    """Posts with their splits, the label names of each target in order, and the counts behind them. `warnings`: what a
    training or an extraction would refuse.
    """

    posts: list[Post]
    names: dict[str, tuple[str, ...]]
    summary: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def prepare(
    source: str | Path | Sequence[str | Path],
    *,
    name: str | None = None,
    options: ReadOptions = NO_OPTIONS,
    labels: Sequence[str] = (),
    splits: str | Path | None = None,
    test_split: str | None = None,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    allow_unmatched: bool = False,
    max_fail_rate: float = MOST_REJECTED,
) -> Prepared:
    """Read a data set of the format `name`, or of the one that it looks like, and split its posts: by `splits`
    (id,label,split), else by `ratios` of train, val and test where they are given, else by the source's own splits,
    else stratified 8:1:1. The source is a file or a folder, or tars or Parquet files, as `pipeline.posts.source_set`
    has them.

    `labels` fixes the names of the classes and their order. `test_split` names the split of the source to test on,
    where its own test split has no labels. A source with splits but without `val` has a part of train held out. Raises
    InputError naming what can't be used, and where more than `max_fail_rate` of the rows are no post.
    """
    files = files_of([source] if isinstance(source, str | Path) else source)
    remote = [file for file in files if is_url(file)] if isinstance(files, list) else []
    with allowing(*remote):
        module = format_of(files, name)
        found: DataSet = module.read(files, options) if isinstance(files, Path) else module.read_files(files, options)
        source = files if isinstance(files, Path) else files[0]
        _require_enough(found, source, max_fail_rate)
        found, spelled = _spelled(found, labels)
        names = _names(found, labels)
        summary: dict[str, Any] = {"format": module.__name__.rpartition(".")[2].replace("_", "-"), **found.facts}
        if spelled:
            summary["merged"] = {**found.facts.get("merged", {}), **spelled}
        summary |= {"kept": len(found.posts), "unlabelled": 0}
        if found.rejected:
            summary["rejected"] = {
                reason: {"rows": count, "first": found.first_rejected.get(reason, "")}
                for reason, count in found.rejected.items()
            }
        classes = names_of(found.posts, names)[LABEL]
        posts, how = _split(found, classes, splits, test_split, ratios, seed, allow_unmatched)
        summary |= {**how, "unlabelled": sum(post.label is None for post in posts)}
        names = names_of(posts, names)
        if labels and (unknown := [name for name in names[LABEL] if name not in labels]):
            raise InputError(
                f"{splits}: the label {shown(unknown[0])} is not one of {option('labels', ','.join(labels))}"
            )
        require_names(names, str(source))
        summary["classes"] = class_counts(posts, names[LABEL])
        summary["targets"] = {
            target: {label: counts[label] for label in known}
            for target, known in names.items()
            if target != LABEL and (counts := Counter(post.targets.get(target) for post in posts))
        }
        summary["duplicates_of_training"] = duplicates_of_training(posts)
        return Prepared(posts, names, summary, _warnings(posts, names))


def _warnings(posts: Sequence[Post], names: Mapping[str, Sequence[str]]) -> list[str]:
    """What of the manifest makes an extraction or a training impossible, a line each."""
    found = []
    if not any(post.label for post in posts):
        found.append("no post has a label; a table's is named with " + option("columns", "label=.."))
    with_image = [post for post in posts if post.image is not None]
    if with_image and not any(is_there(post.image) for post in with_image if post.image):
        first = f"{with_image[0].image}, the first of {len(with_image)}"
        found.append(f"no image is there, neither {first}; a table's are named with {option('image_pattern')}")
    trained = [post for post in posts if post.split == "train"]
    for target, labels in names.items() if trained else ():
        learned = {post.label_of(target) for post in trained}
        split = {post.label_of(target) for post in posts if post.split is not None}
        if absent := [label for label in labels if label in split and label not in learned]:
            found.append(
                f"target {target}: no training post is {', '.join(map(shown, absent[:5]))}; "
                "to train on it, leave such posts out of a split file"
            )
    return found


def _require_enough(found: DataSet, source: Path | str, most: float) -> None:
    lost = sum(found.rejected.values())
    first = next(iter(found.first_rejected.values()), "")
    if not found.posts:
        raise InputError(f"{source}: no post in it that can be used{f'; {first}' if first else ''}")
    if lost > most * (lost + len(found.posts)):
        rows = f"{lost} of {lost + len(found.posts)} rows are no post"
        raise InputError(f"{source}: {rows}, over {option('max_fail_rate', f'{most:g}')}; {first}")


def _spelled(found: DataSet, labels: Sequence[str]) -> tuple[DataSet, dict[str, Any]]:
    """The posts with their labels spelled as in `labels`, and what to report of that."""
    other = {LABEL: spellings(found.posts, {LABEL: labels})[LABEL]} if labels else {}
    posts = [respelled(post, other) for post in found.posts]
    return replace(found, posts=posts), spelling_facts(other)


def _names(found: DataSet, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The label names whose order is known: those of `labels` in place of the format's."""
    if not labels:
        return dict(found.names)
    require_names({LABEL: labels}, option("labels"))
    if stranger := next((post for post in found.posts if post.label is not None and post.label not in labels), None):
        raise InputError(
            f"{option('labels', ','.join(labels))}: post {stranger.id!r} has the label {shown(stranger.label)}; add it"
        )
    return {**found.names, LABEL: tuple(labels)}


def _split(
    found: DataSet,
    names: Sequence[str],
    splits: str | Path | None,
    test_split: str | None,
    ratios: Sequence[float] | None,
    seed: int,
    allow_unmatched: bool,
) -> tuple[list[Post], dict[str, Any]]:
    """The posts with their splits, and what to report of them."""
    if splits is not None:
        for name, value in (("ratios", ratios), ("test_split", test_split)):
            if value:
                raise InputError(f"{option(name)}: {option('splits')} gives the splits; leave one of the two out")
        return given_split(found.posts, Path(splits), allow_unmatched=allow_unmatched)
    if not names:
        return found.posts, {"split": "none: no post has a label"}
    shares = ratios or RATIOS
    written = ":".join(f"{share:g}" for share in shares)
    if found.splits_from is None or (ratios and test_split is None):
        if test_split is not None:
            raise InputError(f"{option('test_split', test_split)}: the source has no splits of its own; leave it out")
        return stratified_split(found.posts, shares, seed, names), {"split": f"stratified {written}, seed {seed}"}
    posts, how = found.posts, found.splits_from
    if test_split is not None:
        if not any(post.split == test_split and post.label for post in posts):
            raise InputError(f"{option('test_split', test_split)}: the source has no labelled post of this split")
        posts = [replace(post, split=_moved(post.split, test_split)) for post in posts]
        how += f"; its {test_split} posts are the test posts"
    if not any(post.split == "val" and post.label for post in posts):
        posts, count = hold_out(posts, shares, seed, names)
        if count:
            how += f"; {count} posts of train are held out as val, stratified, seed {seed}"
    return posts, {"split": how}


def _moved(split: str | None, test_split: str) -> str | None:
    """The split of a post once `test_split` is tested on: the source's own test posts are left out."""
    if split == test_split:
        return SPLITS[2]
    return None if split == SPLITS[2] else split
