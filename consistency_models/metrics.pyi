# Made by tests/stubs.py; edit the notebooks.
from typing import Any
import torch
from torch import Tensor, nn
__all__ = ['feature_statistics', 'frechet_distance', 'Classifier', 'train_classifier', 'recognition_rate', 'inception_features', 'kernel_distance', 'precision_recall', 'consistency_error']

def feature_statistics(x: Tensor, features, path=..., batch_size: int=...) -> dict[str, Tensor]:
    ...

def frechet_distance(real, fake: Tensor, features, batch_size: int=...) -> float:
    ...

class Classifier(nn.Module):
    body: Any
    head: Any

    def __init__(self, shape: tuple=..., num_classes: int=...):
        ...

    def features(self, x: Tensor) -> Tensor:
        ...

    def forward(self, x: Tensor) -> Tensor:
        ...

def train_classifier(images: Tensor, labels: Tensor, steps: int=..., seed: int=...) -> Classifier:
    ...

def recognition_rate(images: Tensor, labels: Tensor, classifier: Classifier) -> float:
    ...

def inception_features(device: torch.device | None=...):
    ...

def kernel_distance(real: Tensor, fake: Tensor, features, batch_size: int=...) -> float:
    ...

def precision_recall(real: Tensor, fake: Tensor, features, neighbours: int=...) -> tuple[float, float]:
    ...

def consistency_error(model, data: Tensor, sigmas, samples: int=..., generator: torch.Generator | None=..., **kwargs) -> list[float]:
    ...
