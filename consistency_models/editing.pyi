# Made by tests/stubs.py; edit the notebooks.
from collections.abc import Callable
from torch import Tensor
from .parameterization import ConsistencyFunction
from .sampling import Operator
__all__ = ['LUMINANCE', 'editing_sigmas', 'edit', 'inpaint', 'preset_mask', 'outpaint', 'orthogonal_basis', 'colorization', 'colorize', 'super_resolution', 'super_resolve', 'stroke_to_image', 'denoise', 'interpolate_latents']

def editing_sigmas(n: int=..., sigma_min: float=...) -> Tensor:
    ...

def edit(f: ConsistencyFunction | Callable, y: Tensor, operator: Operator | None=..., sigmas=..., **kwargs) -> Tensor:
    ...

def inpaint(f: ConsistencyFunction | Callable, x: Tensor, mask: Tensor, sigmas=..., **kwargs) -> Tensor:
    ...

def preset_mask(name: str, height: int, width: int, seed: int=...) -> Tensor:
    ...

def outpaint(f: ConsistencyFunction | Callable, x: Tensor, padding: int | tuple, sigmas=..., **kwargs) -> Tensor:
    ...

def orthogonal_basis(first) -> Tensor:
    ...
LUMINANCE: tuple

def in_basis(x: Tensor, basis: Tensor) -> Tensor:
    ...

def colorization() -> Operator:
    ...

def colorize(f: ConsistencyFunction | Callable, gray: Tensor, sigmas=..., **kwargs) -> Tensor:
    ...

def split_patches(x: Tensor, factor: int) -> Tensor:
    ...

def join_patches(u: Tensor, factor: int) -> Tensor:
    ...

def super_resolution(factor: int, dims: int=...) -> Operator:
    ...

def super_resolve(f: ConsistencyFunction | Callable, low: Tensor, factor: int, sigmas=..., **kwargs) -> Tensor:
    ...

def stroke_to_image(f: ConsistencyFunction | Callable, painting: Tensor, sigmas=..., **kwargs) -> Tensor:
    ...

def denoise(f: ConsistencyFunction | Callable, x: Tensor, sigma: float, **kwargs) -> Tensor:
    ...

def interpolate_latents(f: ConsistencyFunction | Callable, a: Tensor, b: Tensor, weights, sigmas=..., **kwargs) -> Tensor:
    ...
