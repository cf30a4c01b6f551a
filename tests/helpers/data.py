"""Real data sets, where they are there."""

import os

import pytest

needs_multiple = pytest.mark.skipif(
    "MVSA_MULTIPLE_TEXTS" not in os.environ, reason="MVSA_MULTIPLE_TEXTS names no texts of MVSA-Multiple"
)
