# Made by tests/stubs.py; edit the notebooks.
import torch
from torch import Tensor
__all__ = ['pseudo_huber_loss', 'lpips_network', 'lpips_loss', 'improved_loss_weighting']

def pseudo_huber_loss(input: Tensor, target: Tensor, c: float | None=...) -> Tensor:
    ...

def lpips_network(net: str=..., device: str=...) -> torch.nn.Module:
    ...

def lpips_loss(input: Tensor, target: Tensor, network=..., size: int=...) -> Tensor:
    ...

def improved_loss_weighting(sigmas: Tensor) -> Tensor:
    ...
