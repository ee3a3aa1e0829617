"""Sequential recommenders of the literature, under the names of their papers.

Each takes ids (B, L) int64, padded in front, and returns logits (B, C) of the next item. Logits do not
depend on padding, up to rounding: padded places reach no attention and no state. The embedding of an item
is its row of the last layer, so that features and items share a space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ModelError
from pipeline.modalities.families import FreshNetworks
from pipeline.modalities.items.preprocessing import GivenItems, ItemsPreprocessing
from pipeline.modalities.items.rendering import FIRST, PAD
from pipeline.modalities.preprocessing import Preprocessing

_STD = 0.02


class TiedItems(nn.Module):
    """Embeddings of items, which are the rows of the last layer, and of the mask.

    Args:
        num_classes: C, the size of the catalogue.
        vocabulary: number of ids, C + 2.
        dim: size of an embedding.

    Raises:
        ValueError: the last layer has other rows than the catalogue has items.
    """

    def __init__(self, num_classes: int, vocabulary: int, dim: int) -> None:
        super().__init__()
        if vocabulary != num_classes + FIRST + 1:
            raise ValueError(
                f"{num_classes} logits and {vocabulary} ids; expected one logit per item, and two more, "
                "of padding and the mask"
            )
        self.mask = nn.Parameter(torch.empty(1, dim).normal_(std=_STD))

    def forward(self, ids: Tensor, rows_CD: Tensor) -> Tensor:
        """Return the embeddings (B, L, D) of ids (B, L); those of padding are zero."""
        table = torch.cat([torch.zeros_like(self.mask), rows_CD, self.mask])
        return F.embedding(ids, table)


class SasRec(nn.Module):
    """Self-attention over the history: causal, with learned positions counted from the latest item.

    Args:
        num_classes: C, the size of the catalogue.
        vocabulary: number of ids, C + 2.
        max_length: number of positions.
        dim: size of a state and of an embedding.
        layers: number of attention layers.
        heads: attention heads of a layer.
        dropout: probability in all layers.

    Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", arXiv 1808.09781. The loss is the
    recipe's over all items; the paper draws one negative.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        max_length: int = 50,
        dim: int = 64,
        layers: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.items = TiedItems(num_classes, vocabulary, dim)
        self.positions = nn.Embedding(max_length, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of ids (B, L)."""
        length = ids.shape[1]
        # The latest item has position 0, whatever the padding.
        places = torch.arange(length, device=ids.device)
        x = self.dropout(self.items(ids, self.head.weight) + self.positions(length - 1 - places))
        # (B, 1, L, L): item i sees item j if j stands before it and is there; padding sees itself alone.
        causal, itself = places[:, None] >= places, places[:, None] == places
        seen = ((ids != PAD)[:, None] & causal | itself)[:, None]
        for layer in self.layers:
            x = layer(x, seen)
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits


class _Layer(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added to its input."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim} and heads is {heads}; expected a multiple")
        self.heads, self.probability = heads, dropout
        self.attention_in, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return the states (B, L, D); attention follows the mask (B, 1, L, L)."""
        batch, length, dim = x.shape
        # (B, L, 3 D) -> three of (B, heads, L, D / heads)
        parts = self.attention_in(self.norms[0](x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        given = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=self.probability if self.training else 0.0
        )
        x = x + self.dropout(self.attention_out(given.transpose(1, 2).reshape(batch, length, dim)))
        inner = self.dropout(F.relu(self.inner(self.norms[1](x))))
        return x + self.dropout(self.outer(inner))  # type: ignore[no-any-return]


class Gru4Rec(nn.Module):
    """A gated recurrent network over the history; its last state, mapped to the space of items.

    Args:
        num_classes: C, the size of the catalogue.
        vocabulary: number of ids, C + 2.
        dim: size of an embedding.
        hidden: size of a state.
        layers: number of recurrent layers.
        dropout: probability after the embeddings.

    Source: Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", arXiv 1511.06939,
    with embeddings that are shared with the last layer and the recipe's loss over all items.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        dim: int = 64,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.items = TiedItems(num_classes, vocabulary, dim)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, hidden, layers, batch_first=True)
        self.to_items = nn.Linear(hidden, dim)
        self.head = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=_STD)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of ids (B, L)."""
        length = ids.shape[1]
        filled = (ids != PAD).sum(1, keepdim=True).clamp(min=1)
        places = torch.arange(length, device=ids.device)
        # Histories move to the front, so that the network reads no padding before an item: 3 of 5 filled
        # gives the places 2, 3, 4, 4, 4, and the last state is that of place 2.
        onward = (places + length - filled).clamp(max=length - 1)
        embedded = self.dropout(self.items(ids.gather(1, onward), self.head.weight))
        states = self.gru(embedded)[0]
        last = (filled - 1)[..., None].expand(-1, 1, states.shape[2])
        logits: Tensor = self.head(self.to_items(states.gather(1, last)[:, 0]))
        return logits


RECOMMENDERS: Mapping[str, Callable[..., nn.Module]] = {"sasrec": SasRec, "gru4rec": Gru4Rec}


class Recommenders(FreshNetworks):
    """The networks of this file, with fresh weights."""

    def __init__(self) -> None:
        super().__init__(RECOMMENDERS, "items")

    def fitted(self, name: str, preprocessing: Preprocessing, given: GivenItems) -> Preprocessing:
        """Return the user's preprocessing.

        Raises:
            ModelError: the data are no histories.
        """
        if not isinstance(preprocessing, ItemsPreprocessing):
            raise ModelError(
                f"model {name} is for histories; expected data.modality: items; choose another model"
            )
        return given.over(preprocessing)

    def fitted_options(self, name: str, preprocessing: ItemsPreprocessing) -> dict[str, Any]:
        """Return the number of positions of `sasrec`."""
        return {"max_length": preprocessing.max_length} if name == "sasrec" else {}
