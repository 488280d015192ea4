# Made by tests/stubs.py; edit the notebooks.
from typing import Any
import torch
from torch import Tensor, nn
__all__ = ['update_ema_model', 'pad_dims_like', 'replay', 'randn_like', 'default_device', 'write_whole', 'update_ema_model_', 'average_of', 'use_style', 'show_images', 'image_grid', 'to_png']

def pad_dims_like(x: Tensor, other: Tensor) -> Tensor:
    ...

def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    ...

def as_double(x) -> Tensor:
    ...

def random_state(device: torch.device) -> dict:
    ...

def set_random_state(state: dict, device: torch.device):
    ...

def replay(state: dict, device: torch.device):
    ...

def draw_device(generator: torch.Generator | None, device: torch.device) -> torch.device:
    ...

def randn_like(x: Tensor, generator: torch.Generator | None=...) -> Tensor:
    ...

def default_device() -> torch.device:
    ...

def write_whole(path, content: bytes):
    ...

def update_ema_model_(ema_model: nn.Module, online_model: nn.Module, decay: float) -> nn.Module:
    ...
update_ema_model: Any

def average_of(net: nn.Module) -> nn.Module:
    ...

def with_weights(model: nn.Module, average: nn.Module):
    ...

def use_style():
    ...

def show_images(x: Tensor, titles: list | None=..., columns: int=..., size: float=..., smooth: bool=..., rows: list | None=...):
    ...

def image_grid(x: Tensor, columns: int=..., width: int=...) -> Tensor:
    ...

def to_png(image: Tensor) -> bytes:
    ...
