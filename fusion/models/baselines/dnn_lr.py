"""DNN-LR (Yu, Lin, Meng and Zhao, Algorithms 9(2):41, 2016): two networks' predictions, averaged.

From the source (abstract, and the description in Liu et al.): a convolutional network over pre-trained word
vectors and a deep network with dropout over the image each classify alone, and their predictions are averaged
(late fusion).
Reconstruction: Kim's sizes for the text network, one hidden layer of `width` for the image network; words are
the cached tokens. The two networks are trained by their own losses, as if apart.
Reads `width` and `dropout`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, FrozenText, Losses, Model, losses_of
from fusion.models.baselines.parts import TextCnn


class DnnLr(Model):
    title = "DNN-LR"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        self.text_cnn = TextCnn(dimensions.text_width)
        self.text_head = nn.Linear(TextCnn.WIDTH, dimensions.classes)
        self.image_hidden = nn.Linear(dimensions.channels, config.width)
        self.image_head = nn.Linear(config.width, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        return averaged(*self.predictions(batch))

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits of text and image, each (B, classes)."""
        text = self.text_head(self.dropout(self.text_cnn(batch.tokens, batch.text_mask)))
        image = self.image_head(self.dropout(F.relu(self.image_hidden(batch.pooled))))
        return text, image

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Reports the loss of the average; minimises the sum of the two networks' own."""
        text, image = self.predictions(batch)
        own = F.cross_entropy(text, batch.labels) + F.cross_entropy(image, batch.labels)
        return losses_of(batch, F.cross_entropy(averaged(text, image), batch.labels), own)


def averaged(first: Tensor, second: Tensor) -> Tensor:
    """Logits whose softmax is the mean of the two softmaxes."""
    both = torch.stack([first.log_softmax(dim=1), second.log_softmax(dim=1)])
    return both.logsumexp(dim=0) - math.log(2)
