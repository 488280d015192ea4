"""Small networks and helpers that several test files share."""

import io
import threading

import pytest
import torch
from PIL import Image
from torch import nn

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])


torch.set_num_threads(1)   # the tensors are small: threads would wait for each other, above all on a busy machine


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0, dtype=torch.float32):
    """Standard normal numbers that are the same in every run."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def shake(network):
    """Give all parameters random values, so that no layer starts at zero."""
    for i, p in enumerate(network.parameters()): nn.init.normal_(p, std=0.2, generator=seeded(i))
    return network


def calls_of(network):
    """A list that collects `(x, sigma, kwargs)` of every later call of `network`."""
    calls = []
    network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((*args, kwargs)), with_kwargs=True)
    return calls


class AnyRank(nn.Module):
    """A network for data of shape `(batch, channels, ...)` with any number of further axes."""

    def __init__(self, channels=3, width=8, dropout=0.):
        super().__init__()
        self.inp, self.noise, self.out = nn.Linear(channels, width), nn.Linear(1, width), nn.Linear(width, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, sigma):
        level = self.noise(sigma.log()[:, None])
        h = self.inp(x.movedim(1, -1)) + level.reshape(len(x), *(1,) * (x.ndim - 2), -1)
        return self.out(self.dropout(h.tanh())).movedim(-1, 1)


class ConvNet(nn.Module):
    """A network for images with dropout; `my_kwarg` holds one class for each image and must be given."""

    def __init__(self, channels=3, width=8, dropout=0.5):
        super().__init__()
        self.inp, self.out = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.noise, self.classes, self.dropout = nn.Linear(1, width), nn.Embedding(4, width), nn.Dropout(dropout)

    def forward(self, x, sigma, my_kwarg):
        level = self.noise(sigma.log()[:, None]) + self.classes(my_kwarg)
        return self.out(self.dropout((self.inp(x) + level[:, :, None, None]).tanh()))


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same global random state, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def any_rank():
    return shake(AnyRank())


@pytest.fixture
def conv_net():
    return shake(ConvNet())


@pytest.fixture
def images():
    """Four colour images in [-1, 1], 8 by 8."""
    return gaussian(4, 3, 8, 8).tanh()


@pytest.fixture
def my_kwarg():
    return torch.tensor([0, 1, 2, 3])


# Widgets

@pytest.fixture
def no_threads(monkeypatch):
    """Fails a test that starts a thread: what a thread sets on a widget is not shown on Colab."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"{thread} was started"))


def picture(live):
    """The picture of an explorer that has no complaint."""
    assert live.message.value == ""
    return live.picture.value


def pixels(png):
    """The pixels of a PNG, whatever the way it was packed."""
    with Image.open(io.BytesIO(png)) as image: return image.size, image.convert("RGB").tobytes()
