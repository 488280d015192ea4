# Made by tests/stubs.py; edit the notebooks.
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
import torch
from torch import Tensor
__all__ = ['check_sigmas', 'identity', 'check_mask', 'keep_known', 'ConsistencySamplingAndEditing', 'slerp', 'check_interpolation']

def check_sigmas(sigmas: Iterable, sigma_min: float=...) -> list[float]:
    ...

def identity(x: Tensor) -> Tensor:
    ...

def check_mask(mask, ay: Tensor) -> Tensor:
    ...

def keep_known(y: Tensor, mask: Tensor | None, transform_fn: Callable=..., inverse_transform_fn: Callable=...) -> Callable:
    ...

@dataclass(eq=False)
class ConsistencySamplingAndEditing:
    sigma_min: float = ...
    sigma_data: float = ...

    def __post_init__(self):
        ...

    def trajectory(self, model, y: Tensor, sigmas: Iterable, mask: Tensor | None=..., transform_fn: Callable=..., inverse_transform_fn: Callable=..., start_from_y: bool=..., add_initial_noise: bool=..., clip_denoised: bool=..., verbose: bool=..., generator: torch.Generator | None=..., enable_grad: bool=..., model_kwargs: dict | None=..., **kwargs) -> Iterator[tuple[float, Tensor, Tensor]]:
        ...

    def __call__(self, model, y: Tensor, sigmas: Iterable, mask: Tensor | None=..., transform_fn: Callable=..., inverse_transform_fn: Callable=..., start_from_y: bool=..., add_initial_noise: bool=..., clip_denoised: bool=..., verbose: bool=..., generator: torch.Generator | None=..., enable_grad: bool=..., model_kwargs: dict | None=..., **kwargs) -> Tensor:
        ...

    def interpolate(self, model, a: Tensor, b: Tensor, ab_ratio, sigmas: Iterable, clip_denoised: bool=..., verbose: bool=..., generator: torch.Generator | None=..., model_kwargs: dict | None=..., **kwargs) -> Tensor:
        ...

def slerp(a: Tensor, b: Tensor, ratio) -> Tensor:
    ...

def check_interpolation(a, b, ratio, name: str=...):
    ...
