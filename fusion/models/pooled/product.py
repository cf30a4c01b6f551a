"""Element-wise product of the projected vectors of text and image (Hate-CLIPper, Kumar and Nandakumar 2022).

The product is high only where both projections are: what one modality means may depend on the other. Beyond the paper.
"""

from torch import Tensor

from fusion.config import Config
from fusion.models.base import Dimensions
from fusion.models.pooled.vectors import Block, PooledModel


class Product(PooledModel):
    title = "product of pooled vectors"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions, mixed=config.width, layers=config.layers - 1)
        self.text_block = Block(dimensions.text_vector_width, config.width, config.dropout)
        self.image_block = Block(dimensions.image_vector_width, config.width, config.dropout)

    def mix(self, text: Tensor, image: Tensor) -> Tensor:
        product: Tensor = self.text_block(text) * self.image_block(image)
        return product
