"""Concatenation: hidden layers over the vectors of text and image side by side.

The plainest fusion: any product of the two is left to the hidden layers. Beyond the paper.
"""

import torch
from torch import Tensor

from fusion.config import Config
from fusion.models.base import Dimensions
from fusion.models.pooled.vectors import PooledModel


class Concat(PooledModel):
    title = "concatenation of pooled vectors"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        both = dimensions.text_vector_width + dimensions.image_vector_width
        super().__init__(config, dimensions, mixed=both, layers=config.layers)

    def mix(self, text: Tensor, image: Tensor) -> Tensor:
        return torch.cat([text, image], dim=1)
