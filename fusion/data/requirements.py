"""What a cache must have for a configuration to be trained on it."""

from fusion.config import Config
from fusion.names import OWN
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import require_images
from pipeline.posts.manifest import LABELS


def require_trainable(cache: Cache, config: Config) -> None:
    """Raises InputError if the cache lacks what the configuration learns from: images, views, classes, labels."""
    if config.modalities != "text" and config.model != OWN:
        unless = " unless modalities is text" if config.model == "fusion" else ""
        require_images(cache.fingerprint, cache.folder, f"the model {config.model} needs images{unless}")
    if config.views == "sample" and cache.views == 1:
        raise InputError(
            f"{cache.folder}: has one view of each image; for views sample extract with {option('views', '2')} to 6"
        )
    require_all_classes(cache)
    if config.label_rule:
        require_modality_labels(cache)


def require_all_classes(cache: Cache) -> None:
    """Raises InputError if a class has no training post: it could not be learned."""
    present = set(cache.labels[cache.rows("train")].tolist())
    if absent := [name for code, name in enumerate(LABELS) if code not in present]:
        raise InputError(
            f"{cache.folder}: no training post is labelled {' or '.join(absent)}; check the labels and the split"
        )


def require_modality_labels(cache: Cache) -> None:
    """Raises InputError if the training posts have no text's or no image's own label to learn from."""
    rows = cache.rows("train")
    for name, labels in (("text_label", cache.text_labels), ("image_label", cache.image_labels)):
        if not (labels[rows] >= 0).any():
            raise InputError(
                f"{cache.folder}: {name} is unknown of all training posts, and label_rule learns from it; "
                "extract from a manifest that has it (`prepare` writes it for MVSA), or set label_rule to false"
            )
