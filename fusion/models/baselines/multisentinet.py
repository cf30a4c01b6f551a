"""MultiSentiNet (Xu and Mao, CIKM 2017): an LSTM's states, weighed by the image.

From the source (the authors' code, github.com/xunan0812/MultiSentiNet): an LSTM over the words; a dense layer
over the image's object vector; word attention u_t = tanh(W h_t + W_o o + b), a = softmax(u_t . u); [image;
attended words] through a dense layer to the classes; cross-entropy; all widths 128.
Reconstruction: the words are the cached tokens in place of trainable GloVe vectors, the object vector is the
cached pooled feature, and dropout, which the source lacks.
Left out: the scene vector, a second image network's, which the cache does not have.
Reads `width` and `dropout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, Model
from fusion.models.baselines.parts import AdditiveAttention


class MultiSentiNet(Model):
    title = "MultiSentiNet without scene features"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        width = config.width
        self.lstm = nn.LSTM(dimensions.text_width, width, batch_first=True)
        self.object = nn.Linear(dimensions.channels, width)
        self.attention = AdditiveAttention(width, width, width)
        self.hidden = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.tokens.device.type, enabled=False):  # not every CPU has an LSTM in bfloat16
            states, _ = self.lstm(batch.tokens)  # B, n, d; forward only, so that padding changes no state before it
        image = F.relu(self.object(batch.pooled))
        words = self.attention(states, image, batch.text_mask)
        return self.head(self.dropout(F.relu(self.hidden(torch.cat([image, words], dim=1)))))
