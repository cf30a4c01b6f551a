"""Times as people say them."""

import pytest

from pipeline.extraction.progress import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (47.2, "47 s"),
        (89.9, "90 s"),
        (90, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (3 * 3600 + 1201, "3 h 20 min"),
        (47 * 3600 + 3540, "47 h 59 min"),
        (103 * 3600 + 60, "4 d 7 h"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
