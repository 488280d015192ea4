# Made by tests/stubs.py; edit the notebooks.
from typing import Any
from pathlib import Path
import torch
from torch import Tensor
__all__ = ['two_moons', 'spiral', 'eight_gaussians', 'load_digits', 'colour_shapes', 'torchvision_dataset', 'ImageFolder', 'read_image', 'measure_sigma_data']

def two_moons(n: int=..., noise: float=..., generator: torch.Generator | None=...) -> Tensor:
    ...

def spiral(n: int=..., noise: float=..., turns: float=..., generator: torch.Generator | None=...) -> Tensor:
    ...

def eight_gaussians(n: int=..., noise: float=..., generator: torch.Generator | None=...) -> tuple[Tensor, Tensor]:
    ...

def load_digits() -> tuple[Tensor, Tensor]:
    ...

def colour_shapes(n: int=..., size: int=..., generator: torch.Generator | None=...) -> tuple[Tensor, Tensor]:
    ...

def torchvision_dataset(name: str, root: str=..., train: bool=..., download: bool=..., size: int | None=..., **options):
    ...

class ImageFolder(torch.utils.data.Dataset):
    size: Any
    channels: Any
    files: Any

    def __init__(self, path: str | Path, size: int=..., channels: int=...):
        ...

    def __len__(self) -> int:
        ...

    def __getitem__(self, i: int) -> Tensor:
        ...

def read_image(source: str | Path | bytes, channels: int, height: int, width: int, background: str=...) -> Tensor:
    ...

def measure_sigma_data(data, samples: int=...) -> float:
    ...
