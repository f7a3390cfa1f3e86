"""A Transformer encoder that forecasts time series."""

import torch
from torch import Tensor, nn


class Forecaster(nn.Module):
    """Windows [batch, window, channels] to forecasts [batch, horizon, channels], float32.

    Each time step is a token. The head reads the last one and says by how much the future differs
    from the last value of each channel. NLinear (Zeng et al., arXiv 2205.13504) adds the last value
    likewise, and subtracts it from its inputs, which this network does not.
    """

    def __init__(
        self,
        channels: int,
        window: int,
        horizon: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(channels, dim)
        self.position = nn.Parameter(torch.empty(window, dim))
        nn.init.normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, mlp_dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(dim)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.head = nn.Linear(dim, horizon * channels)
        self.horizon = horizon

    def forward(self, window: Tensor) -> Tensor:
        """What follows a window."""
        tokens = self.encoder(self.embedding(window) + self.position)
        last = window[:, -1:]
        change = self.head(tokens[:, -1]).reshape(-1, self.horizon, last.shape[2])
        return last + change
