"""ITIGNN (Liao et al., Applied Intelligence 52, 2022): graph attention over words and patches.

From the source (abstract): text features from a graph over the text, image features from a pre-trained network;
both start the nodes of an image-text interaction graph, which graph attention updates; an aggregation layer
classifies.
Reconstruction: nothing else is public, so everything else. Nodes: tokens, patches and the pooled feature, each
through its own linear layer. Edges: each word to its neighbours, words to patches, the pooled node to all,
every node to itself. `layers` layers of graph attention (Velickovic et al. 2018) with `heads` heads, on a dense
matrix of edges, since a post has a few hundred nodes at most. Read-out [mean of words; mean of image nodes;
maximum of all].
Reads `width`, `heads`, `layers`, `dropout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, Model
from fusion.models.baselines.parts import masked_max, masked_mean, masked_softmax

WINDOW = 2  # how far apart two neighbouring words may stand; our guess
SLOPE = 0.2  # of the leaky ReLU; Velickovic et al. 2018


class Itignn(Model):
    title = "ITIGNN-like"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        width = config.width
        self.words = nn.Linear(dimensions.text_width, width)
        self.patches = nn.Linear(dimensions.channels, width)
        self.pooled = nn.Linear(dimensions.channels, width)
        self.layers = nn.ModuleList(GraphAttention(width, config.heads, config.dropout) for _ in range(config.layers))
        self.head = nn.Linear(3 * width, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        image = torch.cat([self.patches(batch.patches), self.pooled(batch.pooled)[:, None]], dim=1)  # B, m + 1, d
        nodes = torch.cat([self.words(batch.tokens), image], dim=1)
        edges = interaction_graph(batch.text_mask, image.shape[1])
        for layer in self.layers:
            nodes = layer(nodes, edges)
        words, image = nodes.split([batch.text_mask.shape[1], image.shape[1]], dim=1)
        real = F.pad(batch.text_mask, (0, image.shape[1]), value=True)
        read = [masked_mean(words, batch.text_mask), image.mean(dim=1), masked_max(nodes, real)]
        return self.head(self.dropout(torch.cat(read, dim=1)))


def interaction_graph(text_mask: Tensor, image_nodes: int) -> Tensor:
    """Who hears whom: (B, N, N) bool over the nodes [words; patches; pooled], N = n + image_nodes; symmetric.

    Padding hears itself alone, and nobody hears it.
    """
    n = text_mask.shape[1]
    place = torch.arange(n + image_nodes, device=text_mask.device)
    is_word, is_pooled = place < n, place == n + image_nodes - 1
    near = (place[:, None] - place).abs() <= WINDOW
    both_words, across = is_word[:, None] & is_word, is_word[:, None] ^ is_word
    edges = (both_words & near) | across | is_pooled[:, None] | is_pooled
    real = F.pad(text_mask, (0, image_nodes), value=True)
    return edges & real[:, :, None] & real[:, None] | (place[:, None] == place)


class GraphAttention(nn.Module):
    """One layer of Velickovic et al. 2018, eqs 1-5 there, the heads side by side and ELU after."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.transform = nn.Linear(width, width, bias=False)
        self.hearing = nn.Parameter(torch.empty(heads, width // heads))  # the halves of the paper's vector a
        self.heard = nn.Parameter(torch.empty(heads, width // heads))
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.hearing)
        nn.init.xavier_uniform_(self.heard)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """nodes (B, N, d), edges (B, N, N) with True where row hears column, to (B, N, d)."""
        z = self.transform(self.dropout(nodes)).unflatten(2, (self.heads, -1)).transpose(1, 2)  # B, heads, N, d / heads
        hearing = (z * self.hearing[:, None]).sum(dim=3)
        heard = (z * self.heard[:, None]).sum(dim=3)
        scores = F.leaky_relu(hearing[:, :, :, None] + heard[:, :, None], SLOPE)  # B, heads, N, N
        weights = self.dropout(masked_softmax(scores, edges[:, None]))
        return F.elu((weights @ z).transpose(1, 2).flatten(2) + self.bias)
