"""Small classifiers of texts from the literature, under the names of their papers.

Each takes token ids (B, L) int64 and returns logits (B, C) that do not depend on padding, up to rounding:
padded places are told from the pad id and never reach a maximum, a mean, a state or an attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ModelError
from pipeline.modalities.families import FreshNetworks
from pipeline.modalities.text.preprocessing import GivenText, TextPreprocessing
from pipeline.modalities.text.tokenizers import Bytes


def filled(ids_BL: Tensor, pad: int) -> Tensor:
    """Return which places (B, L) hold tokens; the first place always counts, so that no sample is empty."""
    first = torch.arange(ids_BL.shape[1], device=ids_BL.device) == 0
    return (ids_BL != pad) | first


class KimCnn(nn.Module):
    """Word embeddings, convolutions of several widths, and each filter's maximum over the text.

    Args:
        num_classes: C, the number of logits.
        vocabulary: number of token ids.
        pad: id of padding.
        dim: size of an embedding.
        filters: filters per width.
        widths: numbers of neighbouring words that a filter sees.
        dropout: probability before the last layer.

    Source: Kim, "Convolutional Neural Networks for Sentence Classification", arXiv 1408.5882, with
    embeddings trained from scratch (CNN-rand).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        pad: int = 0,
        dim: int = 128,
        filters: int = 100,
        widths: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.pad, self.widths = pad, tuple(widths)
        self.embedding = nn.Embedding(vocabulary, dim)
        # Padded by width - 1 on both sides, so that every filter meets every word, of short texts too.
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dim, filters, width, padding=width - 1) for width in widths
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of token ids (B, L)."""
        there = filled(ids, self.pad)[:, None]
        words_BDL = self.embedding(ids).transpose(1, 2) * there
        layers = zip(self.convolutions, self.widths, strict=True)
        found = [_maximum(F.relu(layer(words_BDL)), there, width) for layer, width in layers]
        logits: Tensor = self.head(self.dropout(torch.cat(found, 1)))
        return logits


def _maximum(found_BFM: Tensor, there_B1L: Tensor, width: int) -> Tensor:
    """Return each filter's maximum (B, F) over the places where it meets a word.

    Elsewhere a filter gives its bias, so that longer padding would add new values.
    """
    # M = L + width - 1 places; filter place m sees words m - width + 1 to m.
    ones = found_BFM.new_ones(1, 1, width)
    meets = F.conv1d(there_B1L.to(found_BFM.dtype), ones, padding=width - 1)
    # After ReLU no value is below 0.
    return (found_BFM * meets.clamp(max=1)).amax(2)


class BiLstm(nn.Module):
    """A bidirectional LSTM, and the maximum of its states over the text.

    Args:
        num_classes: C, the number of logits.
        vocabulary: number of token ids.
        pad: id of padding.
        dim: size of an embedding.
        hidden: size of a state, per direction.
        dropout: probability before the last layer.

    Source: Conneau et al., "Supervised Learning of Universal Sentence Representations", arXiv 1705.02364
    (BiLSTM-max); the student of Tang et al., arXiv 1903.12136, has the same layers.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        pad: int = 0,
        dim: int = 128,
        hidden: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = nn.Embedding(vocabulary, dim)
        self.onward = nn.LSTM(dim, hidden, batch_first=True)
        self.backward_ = nn.LSTM(dim, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of token ids (B, L)."""
        there = filled(ids, self.pad)
        words = self.embedding(ids)
        # Each text is turned within its own length, so that the second LSTM never reads padding first:
        # length 3 of 5 gives the places 2, 1, 0, 3, 4.
        places, lengths = torch.arange(ids.shape[1], device=ids.device), there.sum(1, keepdim=True)
        turned = torch.where(there, lengths - 1 - places, places).clamp(min=0)[..., None].expand_as(words)
        states = self.onward(words)[0], self.backward_(words.gather(1, turned))[0]
        # States of padding never win: tanh is above -1.
        both = torch.cat(states, 2).masked_fill(~there[..., None], -1.0).amax(1)
        logits: Tensor = self.head(self.dropout(both))
        return logits


class ByteCnn(nn.Module):
    """A residual convolutional network on bytes, and the maximum over the text.

    Args:
        num_classes: C, the number of logits.
        vocabulary: number of token ids.
        pad: id of padding.
        dim: channels of all layers.
        blocks: number of residual blocks of two convolutions.
        width: bytes that a convolution sees.
        dropout: probability before the last layer.

    Source: after Zhang et al., "Character-level Convolutional Networks for Text Classification", arXiv
    1509.01626, with the residual blocks of Conneau et al., "Very Deep Convolutional Networks", arXiv
    1606.01781.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        pad: int = 0,
        dim: int = 64,
        blocks: int = 2,
        width: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % 2 == 0:
            raise ValueError(f"width is {width}; expected an odd number")
        self.pad = pad
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(_Block(dim, width) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of token ids (B, L)."""
        there = filled(ids, self.pad)[:, None]
        x = self.embedding(ids).transpose(1, 2) * there
        for block in self.blocks:
            x = block(x, there)
        most = x.masked_fill(~there, -math.inf).amax(2)
        logits: Tensor = self.head(self.dropout(most))
        return logits


class _Block(nn.Module):
    """Pre-activation block; channels are normalised at each place alone, so that padding takes no part."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, dim) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, width, padding=width // 2) for _ in range(2))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Return x (B, D, L) plus its residual; padded places are zero before each convolution."""
        out = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            # (B, D, L) -> (B * L, D) for the norm, which would otherwise average over places.
            places = out.transpose(1, 2)
            normed = norm(places.reshape(-1, places.shape[2])).view_as(places).transpose(1, 2)
            out = layer(F.relu(normed) * there)
        return x + out * there


class BertTiny(nn.Module):
    """A small BERT: learned positions, post-norm encoder layers, and a tanh pooler of the first token.

    Args:
        num_classes: C, the number of logits.
        vocabulary: number of token ids.
        pad: id of padding.
        max_length: number of positions.
        dim: size of a state.
        layers: number of encoder layers.
        heads: attention heads of a layer.
        dropout: probability in all layers.

    Source: Devlin et al., arXiv 1810.04805; the size BERT-Tiny (2 layers, 128) is from Turc et al.,
    "Well-Read Students Learn Better", arXiv 1908.08962. The pooler takes the mean of all tokens, as
    vocabularies of one's own have no [CLS].
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        pad: int = 0,
        max_length: int = 512,
        dim: int = 128,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(max_length, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(dim, heads, dropout) for _ in range(layers))
        self.pooler = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, C) of token ids (B, L)."""
        there = filled(ids, self.pad)
        positions = self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.dropout(self.norm(self.embedding(ids) + positions))
        for layer in self.layers:
            x = layer(x, there)
        mean = (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        logits: Tensor = self.head(self.dropout(torch.tanh(self.pooler(mean))))
        return logits


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim} and heads is {heads}; expected a multiple")
        self.heads, self.probability = heads, dropout
        self.attention_in, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Return the states (B, L, D); attention sees only the places that are there (B, L)."""
        batch, length, dim = x.shape
        # (B, L, 3 D) -> three of (B, heads, L, D / heads)
        query, key, value = (
            self.attention_in(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        seen = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=there[:, None, None],
            dropout_p=self.probability if self.training else 0.0,
        )
        seen = self.attention_out(seen.transpose(1, 2).reshape(batch, length, dim))
        x = self.norms[0](x + self.dropout(seen))
        return self.norms[1](x + self.dropout(self.narrow(F.gelu(self.wide(x)))))  # type: ignore[no-any-return]


STUDENTS: Mapping[str, Callable[..., nn.Module]] = {
    "kim_cnn": KimCnn,
    "bilstm": BiLstm,
    "bert_tiny": BertTiny,
    "byte_cnn": ByteCnn,
}


class Students(FreshNetworks):
    """The networks of this file, with fresh weights."""

    def __init__(self) -> None:
        super().__init__(STUDENTS, "texts")

    def fitted(self, name: str, preprocessing: TextPreprocessing, given: GivenText) -> TextPreprocessing:
        """Return the user's preprocessing; `byte_cnn` takes bytes if nothing else is said.

        Raises:
            ModelError: `byte_cnn` with another tokenizer.
        """
        if name != "byte_cnn":
            return given.over(preprocessing)
        if given.tokenizer not in (None, Bytes.kind):
            raise ModelError(
                f"model byte_cnn takes bytes, and preprocessing.tokenizer is {given.tokenizer!r}; expected "
                "bytes; remove it, or take kim_cnn, which takes any"
            )
        return TextPreprocessing(
            tokenizer=Bytes(),
            max_length=preprocessing.max_length,
            truncation=given.truncation or preprocessing.truncation,
        )

    def fitted_options(self, name: str, preprocessing: TextPreprocessing) -> dict[str, Any]:
        """Return the pad id, and the number of positions of `bert_tiny`."""
        positions = {"max_length": preprocessing.max_length} if name == "bert_tiny" else {}
        return {"pad": preprocessing.pad, **positions}
