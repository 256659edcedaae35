"""LeNet-300-100, the multilayer perceptron of the papers on sparse training."""

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers of 300 and 100 ReLU units on the flattened image (LeCun et al. 1998, III).

    `inputs` is channels x height x width; `dropout` the probability of dropping a hidden unit.
    """

    def __init__(self, inputs: int, *, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(inputs, 300)
        self.hidden2 = nn.Linear(300, 100)
        self.classifier = nn.Linear(100, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, height, width] to logits [N, classes]."""
        x = self.dropout(torch.relu(self.hidden1(x.flatten(1))))
        x = self.dropout(torch.relu(self.hidden2(x)))
        return self.classifier(x)
