# Made by tests/stubs.py; edit the notebooks.
from typing import Any
from torch import Tensor, nn
__all__ = ['MLP', 'UNet']

class NoiseEmbedding(nn.Module):
    omega: Tensor
    mlp: Any

    def __init__(self, features: int, frequencies: int=...):
        ...

    def forward(self, c_noise: Tensor) -> Tensor:
        ...

def scale_inputs(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    ...

def check_inputs(x: Tensor, sigma: Tensor, channels: int, *axes: str):
    ...

def embed_labels(embedding: nn.Embedding | None, class_labels: Tensor | None, batch: int) -> Tensor | float:
    ...

class ResidualLayer(nn.Module):
    norm: Any
    linear: Any
    out: Any
    modulate: Any

    def __init__(self, width: int, features: int):
        ...

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        ...

class MLP(nn.Module):
    config: Any
    sigma_data: float
    precondition: bool
    embed: Any
    labels: Any
    inp: Any
    out: Any
    layers: Any

    def __init__(self, dim: int=..., width: int=..., depth: int=..., num_classes: int | None=..., sigma_data: float=..., precondition: bool=...):
        ...

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None=...) -> Tensor:
        ...

def group_norm(channels: int) -> nn.GroupNorm:
    ...

def zero_init(layer: nn.Module) -> nn.Module:
    ...

class ResBlock(nn.Module):
    norm1: Any
    conv1: Any
    norm2: Any
    conv2: Any
    modulate: Any
    dropout: Any
    skip: Any

    def __init__(self, in_channels: int, out_channels: int, features: int, dropout: float=...):
        ...

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        ...

class SelfAttention(nn.Module):
    heads: Any
    norm: Any
    qkv: Any
    out: Any

    def __init__(self, channels: int, head_width: int=...):
        ...

    def forward(self, x: Tensor) -> Tensor:
        ...

class UNet(nn.Module):
    config: Any
    sigma_data: float
    precondition: bool
    in_channels: int
    patch: int
    embed: Any
    labels: Any
    inp: Any
    down: Any
    up: Any
    middle: Any
    attention: Any
    norm: Any
    out: Any
    factor: Any

    def __init__(self, in_channels: int=..., channels: tuple=..., blocks: int=..., attention: bool=..., num_classes: int | None=..., dropout: float=..., sigma_data: float=..., precondition: bool=..., patch: int=...):
        ...

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None=...) -> Tensor:
        ...
