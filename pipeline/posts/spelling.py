"""One spelling for labels that look alike: those that differ in case, blanks, invisible characters or Unicode form."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.posts.labels import LABEL, comparable
from pipeline.posts.manifest import Post
from pipeline.posts.shown import shown

Spellings = Mapping[str, Mapping[str, str]]  # for each target the labels that are respelled, and how


def spellings(posts: Sequence[Post], given: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """For each target the labels that look like a more common one, or like a given one, and that one."""
    counts: dict[str, Counter[str]] = {LABEL: Counter()}
    for post in posts:
        for target, label in ((LABEL, post.label), *post.targets.items()):
            if label is not None:
                counts.setdefault(target, Counter())[label] += 1
    found: dict[str, dict[str, str]] = {}
    for target, labels in counts.items():
        common: dict[str, str] = {}
        for label, _ in labels.most_common():
            common.setdefault(comparable(label), label)
        common |= {comparable(label): label for label in given.get(target, ())}
        kept = {*common.values(), *given.get(target, ())}
        found[target] = {label: common[comparable(label)] for label in labels if label not in kept}
    return found


def respelled(post: Post, found: Spellings) -> Post:
    """The post with these spellings of its labels."""
    targets = {name: found.get(name, {}).get(label, label) for name, label in post.targets.items()}
    label = post.label if post.label is None else found.get(LABEL, {}).get(post.label, post.label)
    return replace(post, label=label, targets=targets)


def spelling_facts(found: Spellings) -> dict[str, Any]:
    """What to report: for each target, each label that is read as another one."""
    return {
        target: {label: f"read as {shown(other)}" for label, other in labels.items()}
        for target, labels in found.items()
        if labels
    }
