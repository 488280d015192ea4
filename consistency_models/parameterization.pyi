# Made by tests/stubs.py; edit the notebooks.
from collections.abc import Callable
from dataclasses import dataclass
from torch import Tensor, nn
__all__ = ['skip_scaling', 'output_scaling', 'input_scaling', 'noise_conditioning', 'ConsistencyFunction', 'consistency_function', 'model_forward_wrapper', 'Precondition', 'gaussian_consistency_function']

def skip_scaling(sigma: Tensor, sigma_data: float=..., sigma_min: float=...) -> Tensor:
    ...

def output_scaling(sigma: Tensor, sigma_data: float=..., sigma_min: float=...) -> Tensor:
    ...

def input_scaling(sigma: Tensor, sigma_data: float=...) -> Tensor:
    ...

def noise_conditioning(sigma: Tensor) -> Tensor:
    ...

def one_level_each(sigma, x: Tensor) -> Tensor:
    ...

@dataclass(frozen=True, eq=False)
class ConsistencyFunction:
    answer: Callable
    sigma_min: float = ...

    def __call__(self, x: Tensor, sigma) -> Tensor:
        ...

def sigma_data_of(net) -> float | None:
    ...

def check_sigma_data(net, sigma_data: float):
    ...

def consistency_function_of(net: Callable, sigma_data: float, sigma_min: float, kwargs: dict) -> ConsistencyFunction:
    ...

def consistency_function(net: Callable, sigma_data: float | None=..., sigma_min: float=..., **kwargs) -> ConsistencyFunction:
    ...

def model_forward_wrapper(model: Callable, x: Tensor, sigma: Tensor, sigma_data: float=..., sigma_min: float=..., **kwargs) -> Tensor:
    ...

class Precondition(nn.Module):
    net: nn.Module
    sigma_data: float

    def __init__(self, net: nn.Module, sigma_data: float=...):
        ...

    def forward(self, x: Tensor, sigma: Tensor, **kwargs) -> Tensor:
        ...

def gaussian_consistency_function(x: Tensor, sigma: Tensor, mean: float=..., std: float=..., sigma_min: float=...) -> Tensor:
    ...
