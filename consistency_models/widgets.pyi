# Made by tests/stubs.py; edit the notebooks.
from typing import Any
from collections.abc import Callable, Iterator
import anywidget
import ipywidgets
import torch
from torch import Tensor
from .trainer import LossByLevel, TrainingState
__all__ = ['PAINT_JS', 'PAINT_CSS', 'TASKS', 'Live', 'sample_steps', 'labeled_grid', 'sampling_picture', 'ordered_levels', 'load_model', 'sampling_explorer', 'film', 'PaintSurface', 'data_url', 'from_data_url', 'edit_picture', 'example_images', 'read_upload', 'EditingExplorer', 'editing_explorer', 'figure_png', 'schedule_explorer', 'parameterization_explorer', 'timesteps_explorer', 'huber_explorer', 'drawn_points', 'path_picture', 'trajectory_explorer', 'training_picture', 'training_dashboard', 'app']

class Live(ipywidgets.VBox):
    draw: Callable
    controls: dict
    held: Any
    picture: Any
    message: Any

    def __init__(self, draw: Callable, controls: dict, top=..., beside=...):
        ...

    def close(self):
        ...

    def values(self) -> dict:
        ...

    def refresh(self, change=...):
        ...

    def say(self, error: Exception):
        ...

    def hold(self):
        ...

def sample_steps(net, n: int, sigmas, seed: int=..., label: int=..., clip: bool=...) -> list:
    ...

def labeled_grid(x: Tensor, columns: int, rows=..., titles=..., width: int=...) -> bytes:
    ...

def sampling_picture(net, columns: int, rows: int, sigmas, seed: int=..., label: int=..., clip: bool=...) -> bytes:
    ...

def ordered_levels(*sigmas, first: float=...) -> list[float]:
    ...

def load_model(model, device: torch.device | None=...):
    ...

def sampling_explorer(model=..., device: torch.device | None=...) -> Live:
    ...

def film(live: Live, settings: list, duration: int=...) -> bytes:
    ...
PAINT_JS: str
PAINT_CSS: str

class PaintSurface(anywidget.AnyWidget):
    height: Any
    width: Any
    image: Any
    strokes: Any

    def layers(self) -> tuple[Tensor, Tensor]:
        ...

    def set_picture(self, x: Tensor):
        ...

    def set_mask(self, mask: Tensor):
        ...

def data_url(x: Tensor) -> str:
    ...

def from_data_url(url: str) -> Tensor:
    ...
TASKS: tuple

def edit_picture(net, task: str, x: Tensor, strokes: tuple | None=..., n: int=..., sigmas=..., seed: int=..., label: int=...) -> tuple[Tensor, Tensor]:
    ...

def example_images(net, n: int=...) -> tuple[Tensor, list]:
    ...

def read_upload(value, shape) -> Tensor:
    ...

class EditingExplorer(Live):
    net: Any
    shape: Any
    images: Any
    labels: Any
    surface: Any
    number: Any
    own: Any
    upload: Any
    preset: Any

    def __init__(self, net, task: str):
        ...

    def close(self):
        ...

    def picture_of(self, task, label, first, rounds, seed, n) -> bytes:
        ...

    def current(self) -> Tensor:
        ...

    def show_image(self, number: int):
        ...

    def begin_task(self, change):
        ...

    def take_upload(self, change):
        ...

def editing_explorer(model=..., task: str=..., device: torch.device | None=...) -> EditingExplorer:
    ...

def figure_png(plot: Callable, width: float=..., height: float=...) -> bytes:
    ...

def schedule_explorer() -> Live:
    ...

def parameterization_explorer() -> Live:
    ...

def timesteps_explorer() -> Live:
    ...

def huber_explorer() -> Live:
    ...

def drawn_points(mask: Tensor, most: int=...) -> Tensor:
    ...

def path_picture(data: Tensor, sigma: float, seed: int=..., n: int=...) -> bytes:
    ...

def trajectory_explorer() -> Live:
    ...

def training_picture(losses: LossByLevel, history: list, samples: Tensor) -> bytes:
    ...

def training_dashboard(states: Iterator[TrainingState], sample: Callable, every: int=...) -> Iterator[TrainingState]:
    ...

def app(device: torch.device | None=...) -> ipywidgets.VBox:
    ...
