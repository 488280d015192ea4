# Made by tests/stubs.py; edit the notebooks.
from torch import Tensor, nn
__all__ = ['skip_scaling', 'output_scaling', 'input_scaling', 'noise_conditioning', 'model_forward_wrapper', 'Precondition', 'sigma_data_of', 'check_sigma_data', 'gaussian_consistency_function', 'as_network']

def skip_scaling(sigma: Tensor, sigma_data: float=..., sigma_min: float=...) -> Tensor:
    ...

def output_scaling(sigma: Tensor, sigma_data: float=..., sigma_min: float=...) -> Tensor:
    ...

def input_scaling(sigma: Tensor, sigma_data: float=...) -> Tensor:
    ...

def noise_conditioning(sigma: Tensor) -> Tensor:
    ...

def model_forward_wrapper(model, x: Tensor, sigma: Tensor, sigma_data: float=..., sigma_min: float=..., **kwargs) -> Tensor:
    ...

class Precondition(nn.Module):
    net: nn.Module
    sigma_data: float

    def __init__(self, net: nn.Module, sigma_data: float=...):
        ...

    def forward(self, x: Tensor, sigma: Tensor, **kwargs) -> Tensor:
        ...

def sigma_data_of(model) -> float | None:
    ...

def check_sigma_data(model, sigma_data: float):
    ...

def gaussian_consistency_function(x: Tensor, sigma: Tensor, mean: float=..., std: float=..., sigma_min: float=...) -> Tensor:
    ...

def as_network(consistency_function, sigma_data: float=..., sigma_min: float=...):
    ...
