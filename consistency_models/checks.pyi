# Made by tests/stubs.py; edit the notebooks.
from collections.abc import Iterable
import torch
from torch import Tensor
__all__ = []

def check_floating(x, name: str):
    ...

def check_samples(x, name: str=...):
    ...

def as_tensor(value, name: str, device: torch.device | None=...) -> Tensor:
    ...

def check_number(value, name: str, low: float=..., high: float=..., above: bool=...) -> float:
    ...

def check_integer(value, name: str, low: int) -> int:
    ...

def check_ascending(sigmas: Tensor) -> Tensor:
    ...

def check_descending(sigmas: Iterable, sigma_min: float=...) -> list[float]:
    ...
