"""The licences of encoders' weights: what is known of them, and what a person must be told before using them."""

from pipeline.encoders.pairs import PAIRS, UNKNOWN

_FREE = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "mit")
_NON_COMMERCIAL = ("apple-amlr", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "fair-noncommercial-research-license")


def image_licence(name: str, stated: str | None) -> str:
    """The licence of a timm model: that of a pair, else what timm has `stated`."""
    known = {pair.image: pair.image_licence for pair in PAIRS.values()}
    return known.get(name) or stated or UNKNOWN


def text_licence(name: str) -> str:
    """The licence of a text encoder by its hub name; unknown of local files."""
    return {pair.text: pair.text_licence for pair in PAIRS.values()}.get(name, UNKNOWN)


def licence_line(name: str, licence: str) -> str:
    """A line on the licence of an encoder, for who is about to use it."""
    asked = restriction(licence)
    return f"licence of {name}: {licence}{f' ({asked})' if asked else ''}"


def restriction(licence: str) -> str:
    """What a licence asks of a person, in a few words; empty where it lets the weights be used for anything."""
    if licence in _FREE:
        return ""
    if licence in _NON_COMMERCIAL:
        return "not for commercial use"
    return "read the model's own page" if licence == UNKNOWN else "has terms of its own; read them first"
