"""What several networks are made of."""

from torch import Tensor, nn


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, of the shape of `x`."""
        return x + self.branch(x)


def feed_forward(size: int, hidden: int) -> nn.Sequential:
    """Two linear layers with a GELU between them, on the last axis."""
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


def mixing_layer(dim: int, mixing: nn.Module, hidden: int) -> tuple[Residual, Residual]:
    """Pre-norm residuals on [.., dim]: `mixing` among positions, then features among themselves."""
    return (
        Residual(nn.LayerNorm(dim), mixing),
        Residual(nn.LayerNorm(dim), feed_forward(dim, hidden)),
    )
