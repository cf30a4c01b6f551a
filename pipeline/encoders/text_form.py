"""What is done to a text before the tokenizer reads it: the placeholders of tweet models, and a prompt's prefix."""

from dataclasses import dataclass
from typing import Any

NONE, TWEET = "none", "tweet"
NORMALIZATIONS = (NONE, TWEET)
LONGEST_PREFIX = 200  # characters


@dataclass(frozen=True)
class TextForm:
    """The text that an encoder reads is `prefix` and then the normalised text."""

    normalize: str = NONE
    prefix: str = ""

    def normalized(self, text: str) -> str:
        """The text without the prefix; with `tweet` a word that begins with @ is `@user`, one that begins with http is
        `http`, as the models of cardiffnlp were trained. Words are what stands between blanks.
        """
        return " ".join(map(_placeholder, text.split(" "))) if self.normalize == TWEET else text

    @property
    def marks(self) -> dict[str, Any]:
        """For the fingerprint: only what is not the default, so that older fingerprints stay what they are."""
        named = {"normalize": (self.normalize, NONE), "prefix": (self.prefix, "")}
        return {name: value for name, (value, default) in named.items() if value != default}


def _placeholder(word: str) -> str:
    if word.startswith("@") and len(word) > 1:
        return "@user"
    return "http" if word.startswith("http") else word
