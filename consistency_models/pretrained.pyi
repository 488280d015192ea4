# Made by tests/stubs.py; edit the notebooks.
from pathlib import Path
import torch
from torch import Tensor, nn
from .parameterization import Precondition
__all__ = ['NETWORKS', 'network_config', 'build_network', 'save_pretrained', 'push_to_hub', 'bundled_checkpoints', 'from_pretrained', 'DiffusersUNet', 'from_diffusers']
NETWORKS: dict

def network_config(net: nn.Module) -> dict:
    ...

def build_network(config: dict) -> nn.Module:
    ...

def save_pretrained(net: nn.Module, folder: str | Path, license: str | None=..., **notes):
    ...

def push_to_hub(net: nn.Module, repo_id: str, private: bool | None=..., token: str | None=..., license: str | None=..., **notes):
    ...

def bundled_checkpoints() -> list[str]:
    ...

def from_pretrained(name: str | Path, device: torch.device | None=..., revision: str | None=...) -> nn.Module:
    ...

class DiffusersUNet(nn.Module):
    unet: nn.Module

    def __init__(self, unet: nn.Module):
        ...

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None=...) -> Tensor:
        ...

def from_diffusers(name: str | Path, subfolder: str=..., sigma_data: float=..., **kwargs) -> Precondition:
    ...
