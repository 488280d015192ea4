# Made by tests/stubs.py; edit the notebooks.
from dataclasses import field
from typing import Any
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from torch import Tensor, nn
from torch.utils.data import Dataset
__all__ = ['shard_seed', 'data_order', 'learning_rate', 'RunOptions', 'Trainer', 'new_accelerator', 'TrainingState', 'finish_first', 'write_checkpoint', 'read_checkpoint', 'LossByLevel', 'progress', 'training_figure', 'watch']

def shard_seed(seed: int, step: int, shard: int) -> int:
    ...

def data_order(n: int, start: int, length: int, seed: int=...) -> Tensor:
    ...

class _SeededSamples(Dataset):
    data: Dataset

    def __init__(self, data: Dataset):
        ...

    def __getitem__(self, key: tuple):
        ...

def learning_rate(step: int, steps: int, peak: float=..., warmup: int=..., decay: bool=...) -> float:
    ...

@dataclass(kw_only=True, eq=False)
class RunOptions:
    seed: int = ...
    precision: str | None = ...
    channels_last: bool = ...
    compile: bool = ...
    workers: int = ...
    out: str | Path | None = ...
    checkpoint_every: int = ...
    keep: int = ...
    tracker: str | None = ...
    accelerator: object | None = ...

@dataclass(eq=False)
class Trainer(RunOptions):
    net: nn.Module
    data: Dataset
    steps: int
    objective: Callable = ...
    conditions: tuple = ...
    batch_size: int = ...
    accumulate: int = ...
    learning_rate: float = ...
    warmup: int = ...
    decay: bool = ...
    clip_norm: float | None = ...
    ema_decay: float = ...
    optimizer: Callable = ...
    step: Any = field(init=False)
    fresh: Any = field(init=False)
    busy: Any = field(init=False)
    called: Any = field(init=False)
    torn: Any = field(init=False)
    bad_gradient: Any = field(init=False)
    device: Any = field(init=False)
    scaler: Any = field(init=False)
    call: Any = field(init=False)
    model: Any = field(init=False)
    average: Any = field(init=False)
    optim: Any = field(init=False)
    optimizer_facts: Any = field(init=False)
    shards: Any = field(init=False)
    levels: Any = field(init=False)

    def __post_init__(self):
        ...

    def checkpoints(self) -> list[Path]:
        ...

    def train(self) -> Iterator[TrainingState]:
        ...

    def save(self):
        ...

    def resume(self) -> bool:
        ...

def new_accelerator(precision: str | None=..., tracker: str | None=..., folder: str | Path | None=...):
    ...

@dataclass
class TrainingState:
    step: int
    steps: int
    loss: Tensor
    losses: Tensor
    upper: Tensor
    num_timesteps: int | None
    learning_rate: float
    samples: int
    trainer: Trainer

def finish_first():
    ...

def write_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict):
    ...

def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    ...

class LossByLevel:
    edges: Any
    centres: Any
    memory: float
    total: Any
    weight: Any

    def __init__(self, bands: int=..., sigma_min: float=..., sigma_max: float=..., memory: float=...):
        ...

    def update(self, state: TrainingState):
        ...

    @property
    def means(self) -> Tensor:
        ...

    def __str__(self) -> str:
        ...

def progress(states: Iterator[TrainingState], every: int=...) -> Iterator[TrainingState]:
    ...

def training_figure(losses: LossByLevel, images: Tensor, title: str=...):
    ...

def watch(states: Iterator[TrainingState], sample: Callable, every: int=...) -> Iterator[TrainingState]:
    ...
