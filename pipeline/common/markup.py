"""Escapes text for Markdown documents, so that what comes from a file is shown and never acts as markup."""

import html
import re

_MARKS = re.compile(r"([\\`*_{}\[\]#|$~^])")


def escaped(text: object) -> str:
    """`text` on one line, without Markdown, HTML, automatic links and mentions."""
    line = " ".join(str(text).split())
    line = _MARKS.sub(r"\\\1", html.escape(line, quote=False))
    return line.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code, with a fence that it can't close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
