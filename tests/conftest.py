"""Small networks and helpers that several test files share."""

import pytest
import torch
from torch import nn

from consistency_models import gaussian_consistency_function, output_scaling, skip_scaling

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


# Gaussian data, where the exact consistency function is known

def relative_error(answer, truth):
    """Root mean square of the error over that of the truth."""
    return ((answer - truth).norm() / truth.norm()).item()


class Exact(nn.Module):
    """
    A raw network whose consistency function is the exact one of N(mean, std^2), with a parameter for
    each of `n` samples and each of three directions in which that function could change.
    """

    def __init__(self, n, mean, std):
        super().__init__()
        self.mean, self.std = mean, std
        self.change = nn.Parameter(torch.zeros(n, 3, dtype=torch.float64))

    def forward(self, x, sigma):
        s = sigma[:, None]
        exact = gaussian_consistency_function(x, sigma, self.mean, self.std)
        centered = (x - self.mean) / (s**2 + self.std**2).sqrt()
        directions = torch.stack([torch.ones_like(x), centered, centered.tanh() * s.log()], -1)
        raw = (exact - skip_scaling(s) * x) / output_scaling(s)
        return raw + (directions * self.change[:, None]).sum(-1)


def gradient_at_gaussian_data(objective, std, n=100_000):
    """
    The largest mean gradient of `objective` on data from N(0.3, 0.5^2), over its root mean square, at
    the exact consistency function of N(0.3, std^2).
    """
    generator, net = seeded(), Exact(n, 0.3, std)
    x = 0.3 + 0.5 * torch.randn(n, 3, dtype=torch.float64, generator=generator)
    objective.attach(net)
    objective.loss(objective.step(net, x, 10, 10, generator)).sum().backward()
    gradient = net.change.grad
    return (gradient.mean(0) / gradient.square().mean(0).sqrt()).abs().max().item()


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
