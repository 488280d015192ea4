# Made by tests/stubs.py; edit the notebooks.
from typing import Any
from pathlib import Path
import torch
from torch import Tensor
from torch.utils.data import Dataset
from .metrics import Classifier
from .trainer import Trainer
__all__ = ['RECIPES', 'COMMANDS', 'recipe_for', 'open_data', 'in_memory', 'describe', 'trained_network', 'make_trainer', 'train', 'sample', 'named_mask', 'edit', 'sample_classes', 'nearest_distance', 'yardstick', 'measure', 'print_table', 'evaluate', 'save', 'draw_samples', 'draw_edits', 'draw_losses', 'demo', 'parser_for', 'main']
RECIPES: dict

def recipe_for(data: str, **changes) -> dict:
    ...

def open_data(name: str, size: int | None=..., root: str=..., train: bool=...) -> Dataset:
    ...

def in_memory(data: Dataset, limit: int=...) -> Dataset:
    ...

def describe(data: Dataset) -> dict:
    ...

def trained_network(start: str, facts: dict):
    ...

def make_trainer(data: Dataset, recipe: dict, seed: int=..., start: str | None=..., **settings) -> Trainer:
    ...

def train(data: str=..., out: str | None=..., steps: int | None=..., seed: int=..., checkpoint_every: int=..., resume: bool=..., batch_size: int | None=..., learning_rate: float | None=..., final_timesteps: int | None=..., precision: str | None=..., size: int | None=..., root: str=..., tracker: str | None=..., start: str | None=...):
    ...

def sample(model: str, n: int=..., sigmas: str=..., labels: str | None=..., seed: int=..., columns: int=..., out: str | None=...):
    ...

def named_mask(name: str, height: int, width: int) -> Tensor:
    ...

def edit(model: str, image: str, mask: str=..., label: int | None=..., n: int=..., sigmas: str=..., seed: int=..., out: str | None=...):
    ...

def sample_classes(net, labels: Tensor, shape, sigmas=..., seed: int=...) -> Tensor:
    ...

def nearest_distance(x: Tensor, data: Tensor) -> Tensor:
    ...

def yardstick(images: Tensor, features, splits: int=...) -> list[float]:
    ...

def measure(net, images: Tensor, labels: Tensor, training: Tensor, judge: Classifier, seeds: int=..., second: float=...) -> dict:
    ...

def print_table(rows: dict):
    ...

def evaluate(model: str, data: str | None=..., root: str=..., seeds: int=..., second: float=...):
    ...

def save(fig, path: Path):
    ...

def draw_samples(net, out: Path, device: torch.device):
    ...

def draw_edits(net, images: Tensor, labels: Tensor, out: Path):
    ...

def draw_losses(history: list, out: Path):
    ...

def demo(out: str=..., steps: int | None=..., seed: int=...):
    ...
COMMANDS: Any

def parser_for(name: str):
    ...

def main(argv: list | None=...) -> int:
    ...
