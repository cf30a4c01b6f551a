"""What a cache keeps of its features: everything, or the pooled vectors alone, for whom these are enough."""

from pathlib import Path

from pipeline.common.errors import InputError, option

ALL, POOLED = "all", "pooled"
KEEPS = (ALL, POOLED)


def require_keep(keep: str) -> None:
    """Raises InputError for what no cache keeps."""
    if keep not in KEEPS:
        raise InputError(f"{option('keep', keep)}: must be one of {', '.join(KEEPS)}")


def require_same_keep(where: Path, keep: str, wanted: str, way: str) -> None:
    """Raises InputError if files keep something else than is wanted. `way`: what to do then."""
    if keep != wanted:
        raise InputError(f"{where}: {_described(keep)}, and {option('keep', wanted)} is asked for; {way}")


def require_all_kept(where: Path, keep: str, what: str, way: str = "") -> None:
    """Raises InputError if a cache keeps pooled vectors alone. `what` says what needs more than these; `way`: what else
    to do than to extract again.
    """
    if keep == POOLED:
        again = f"extract without {option('keep', POOLED)}"
        raise InputError(f"{where}: {_described(keep)}, no patches and no tokens, and {what}; {way}{again}")


def _described(keep: str) -> str:
    return "keeps pooled vectors alone" if keep == POOLED else "keeps all features"
