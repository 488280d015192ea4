# Made by tests/stubs.py; edit the notebooks.
import torch
from torch import Tensor
__all__ = ['karras_schedule', 'timesteps_schedule', 'improved_timesteps_schedule', 'ema_decay_rate_schedule', 'lognormal_probabilities', 'lognormal_timestep_distribution']

def karras_schedule(num_timesteps: int, sigma_min: float=..., sigma_max: float=..., rho: float=..., device: torch.device | None=..., dtype: torch.dtype | None=...) -> Tensor:
    ...

def timesteps_schedule(current_training_step: int, total_training_steps: int, initial_timesteps: int=..., final_timesteps: int=...) -> int:
    ...

def improved_timesteps_schedule(current_training_step: int, total_training_steps: int, initial_timesteps: int=..., final_timesteps: int=...) -> int:
    ...

def ema_decay_rate_schedule(num_timesteps: int, initial_ema_decay_rate: float=..., initial_timesteps: int=...) -> float:
    ...

def lognormal_probabilities(sigmas: Tensor, mean: float=..., std: float=...) -> Tensor:
    ...

def draw_steps(p: Tensor, n: int, generator: torch.Generator | None=...) -> Tensor:
    ...

def lognormal_timestep_distribution(num_samples: int, sigmas: Tensor, mean: float=..., std: float=..., generator: torch.Generator | None=...) -> Tensor:
    ...
