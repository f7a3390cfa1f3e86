"""Perceptron with one hidden layer, the network of the paper's microcontroller experiment."""

from torch import nn


def mlp(inputs: int = 784, hidden: int = 128, classes: int = 10) -> nn.Module:
    """Logits [batch, classes] of images [batch, ...] of `inputs` pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )
