# Made by tests/stubs.py; edit the notebooks.
from torch import Tensor
__all__ = ['ideal_denoiser', 'exact_consistency_function']

def ideal_denoiser(x: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
    ...

def exact_consistency_function(x: Tensor, sigma: Tensor, data: Tensor, steps: int=..., sigma_min: float=..., path: bool=...) -> Tensor:
    ...
