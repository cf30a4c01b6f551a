"""Shows a value of a stranger's file in a message."""

import json
from typing import Any

_MOST = 80  # characters: a line of a stranger's file may have gigabytes


def shown(value: Any) -> str:
    """A value for a message: escaped, on one line, shortened if it is long."""
    if isinstance(value, str):
        return repr(value[:_MOST]) + (" ..." if len(value) > _MOST else "")
    text = json.dumps(value, default=str)
    return text[:_MOST] + (" ..." if len(text) > _MOST else "")
