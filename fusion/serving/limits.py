"""What one request may bring, how long it may take, and how much all requests together may hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on untrusted requests.

    Attributes:
        bytes: of one request's body. pixels: of a picture as stored. characters: of a text.
        requests: in progress at a time; of these at most one per core computes.
        seconds: from a whole request to its answer. decode_seconds: processor time to decode one picture.
        body_seconds: to send a body. head_seconds: to send a request's head; an idle connection ends after them too.
        connections: open at a time; a further one displaces the one that has waited longest.
        held_bytes: of all bodies together, until each is answered.
        decode_mib: memory that a decoding process may use beyond what it starts with.
    """

    bytes: int = 20 << 20
    pixels: int = 40_000_000
    characters: int = 10_000
    requests: int = 32
    seconds: float = 20.0
    decode_seconds: float = 2.0
    body_seconds: float = 60.0
    head_seconds: float = 10.0
    connections: int = 256
    held_bytes: int = 256 << 20
    decode_mib: int = 1024


LIMITS = Limits()


class Refusal(Exception):
    """Why a request gets no answer: an HTTP status and one line that says what to send instead."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After where waiting helps; the connection is closed where the rest of a body was not read."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"Connection": "close"} if self.status in (400, 408, 413) else {})


def busy(reason: str) -> Refusal:
    """The server has too much to do; the same request may succeed in a moment."""
    return Refusal(503, f"{reason}; try again in a moment", retry_after=1)
