"""What a cache must have for a configuration to be trained on it."""

from fusion.config import Config
from fusion.data.batches import modality_labels_of
from fusion.names import OWN, pooled_models
from pipeline.cache.keep import ALL
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import has_mask_token, require_images
from pipeline.posts.labels import MODALITY_TARGETS
from pipeline.posts.mvsa import LABELS


def settled(config: Config, cache: Cache) -> Config:
    """The configuration with what it leaves to the cache: the label rule and the views where they are `auto`."""
    left: dict[str, bool | str] = {}
    if config.label_rule == "auto":
        left["label_rule"] = not lacks_modality_labels(cache)
    if config.views == "auto":
        left["views"] = "sample" if cache.views > 1 else "first"
    return config.model_copy(update=left)


def require_features(cache: Cache, config: Config) -> None:
    """Raises InputError if the model reads patches and tokens, and the cache keeps pooled vectors alone."""
    if cache.keep != ALL and config.model not in pooled_models():
        name = "a module of one's own" if config.model == OWN else f"the model {config.model}"
        cache.require_all_kept(f"{name} reads them", f"use {', '.join(pooled_models())}, or ")


def require_trainable(cache: Cache, config: Config) -> None:
    """Raises InputError if the cache lacks what the configuration learns from: features, images, views, classes,
    labels, a mask token.
    """
    require_features(cache, config)
    config = settled(config, cache)
    if config.modalities != "text" and config.model != OWN:
        unless = " unless modalities is text" if config.model == "fusion" else ""
        require_images(cache.fingerprint, cache.folder, f"the model {config.model} needs images{unless}")
    if config.views == "sample" and cache.views == 1:
        raise InputError(
            f"{cache.folder}: has one view of each image; for views sample extract with {option('views', '2')} to 6"
        )
    if problem := unequal_widths(config, cache.patches_shape[1], cache.image_pooled_width):
        raise InputError(f"{cache.folder}: {problem}")
    if config.mlm:
        require_mask_token(cache)
    require_all_classes(cache)
    if config.label_rule:
        require_modality_labels(cache)


def unequal_widths(config: Config, channels: int, pooled: int) -> str:
    """Why a model can't read an image's patches and pooled vector of these widths; empty if it can."""
    if channels == pooled or config.modalities == "text" or config.model in (OWN, *pooled_models()):
        return ""
    return (
        f"its patches are {channels} wide and its pooled vectors {pooled}, and the model {config.model} needs both "
        f"alike (eq 3); use {', '.join(pooled_models())}, or extract with {option('image_pooled', 'mean')} or cls"
    )


def require_mask_token(cache: Cache) -> None:
    """Raises InputError if the text encoder has no mask token, so that no words can be masked."""
    if not has_mask_token(cache.fingerprint):
        raise InputError(
            f"{cache.folder}: its text encoder {cache.fingerprint['text']['name']} has no mask token, so no words can "
            "be masked; set mlm to false"
        )


def require_all_classes(cache: Cache) -> None:
    """Raises InputError if there are fewer than two classes, or one has no training post: it could not be learned."""
    if len(cache.label_names) < 2:
        only = f"only the class {cache.label_names[0]!r}" if cache.label_names else "no class"
        raise InputError(f"{cache.folder}: the target {cache.target!r} has {only}; a classifier needs two")
    present = set(cache.labels[cache.rows("train")].tolist())
    if absent := [name for code, name in enumerate(cache.label_names) if code not in present]:
        raise InputError(
            f"{cache.folder}: no training post is labelled {' or '.join(absent)}; check the labels and the split, or "
            f"leave such posts out of a file for {option('splits')}"
        )


def require_modality_labels(cache: Cache) -> None:
    """Raises InputError if the label rule has nothing to learn from."""
    if problem := lacks_modality_labels(cache):
        raise InputError(f"{cache.folder}: {problem}")


def lacks_modality_labels(cache: Cache) -> str:
    """Why the label rule has nothing to learn from, empty if it has: the classes are not those of MVSA's rule, or the
    training posts have no label of the text, or none of the image.
    """
    if cache.label_names != LABELS:
        return (
            f"label_rule is MVSA's rule for {', '.join(LABELS)}, in this order; the target {cache.target!r} has "
            f"{', '.join(cache.label_names[:20])}; set label_rule to false"
        )
    known = modality_labels_of(cache, cache.rows("train")) >= 0
    for column, name in enumerate(MODALITY_TARGETS):
        if not known[:, column].any():
            return (
                f"{name} is unknown of all training posts, and label_rule learns from it; "
                "extract from a manifest that has it (`prepare` writes it for MVSA), or set label_rule to false"
            )
    return ""
