"""Broadcasting, shared randomness, and averages of weights."""

import copy

import pytest
import torch
from conftest import AnyRank, ConvNet, calls_of, devices, gaussian, seeded, shake
from torch import nn

from consistency_models import (
    average_of,
    default_device,
    pad_dims_like,
    randn_like,
    update_ema_model,
    update_ema_model_,
)
from consistency_models.utils import (
    as_double,
    at_least_float32,
    draw_device,
    random_state,
    replay,
    set_random_state,
    with_weights,
)


class Mixed(nn.Module):
    """Parameters and buffers of many kinds."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.half = nn.Linear(4, 2).bfloat16()
        self.register_buffer("flags", torch.rand(4) > 0.5)
        self.register_buffer("table", torch.randn(3), persistent=False)
        self.scale = nn.Parameter(torch.randn(()))


def tensors(model):
    return {k: v.detach().clone() for k, v in (*model.named_parameters(), *model.named_buffers())}


def same(a, b):
    """Are two dictionaries of tensors equal, types included?"""
    if a.keys() != b.keys(): return False
    return all(torch.equal(v, b[k]) and v.dtype == b[k].dtype for k, v in a.items())


def without_bias(): return nn.Linear(3, 3, bias=False)


def with_buffer():
    net = nn.Linear(3, 3)
    net.register_buffer("extra", torch.zeros(1))
    return net


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, bias=False))


# Equals the paper

def test_average_is_decay_times_old_plus_the_rest_of_new():
    """The last line of Algorithm 3 of Song et al. (2023)."""
    for decay in (0., 0.1, 0.9999, 1, torch.tensor(0.75)):
        average, online, mu = AnyRank().double(), AnyRank().double(), float(decay)
        before, new = tensors(average), tensors(online)
        for k, v in tensors(update_ema_model_(average, online, decay)).items():
            assert torch.allclose(v, mu * before[k] + (1 - mu) * new[k], rtol=1e-12, atol=1e-15)


def test_averages_in_half_precision_arrive():
    """Each update is smaller than the rounding; none is lost, also by a copy or load on the way."""
    average, online = without_bias(), without_bias()
    nn.init.constant_(average.weight, 1.)
    nn.init.constant_(online.weight, 1.2)
    average, online = average.bfloat16(), online.bfloat16()
    for step in range(4000):
        update_ema_model_(average, online, 0.9975)
        if step == 400: average = copy.deepcopy(average)
        if step == 800:
            average.load_state_dict({k: v.clone() for k, v in average.state_dict().items()})
    assert average.weight.dtype == torch.bfloat16 and set(average.state_dict()) == {"weight"}
    assert torch.allclose(average.weight.float(), torch.tensor(1.2), atol=0.005)


def test_a_float32_average_follows_small_steps_of_a_network_in_half_precision():
    average, online = without_bias(), without_bias().bfloat16()
    nn.init.ones_(average.weight)
    nn.init.constant_(online.weight, 2.)
    for _ in range(10): update_ema_model_(average, online, 0.9999)
    assert torch.allclose(average.weight, torch.tensor(2 - 0.9999**10), rtol=1e-6)


# Keeps its promises

def test_axes_are_added_on_the_right():
    x = torch.arange(6.).reshape(2, 3)
    assert torch.equal(pad_dims_like(x, torch.zeros(2, 3, 4, 5)), x[:, :, None, None])
    assert torch.equal(pad_dims_like(x[0], torch.zeros(3, 3)), x[0][:, None])
    assert pad_dims_like(torch.tensor(1.), torch.zeros(2, 2)).shape == (1, 1)
    assert pad_dims_like(x, x).shape == (2, 3)


def test_coefficients_have_at_least_float32():
    kinds = {torch.float64: torch.float64, torch.float32: torch.float32,
        torch.bfloat16: torch.float32,
             torch.float16: torch.float32, torch.int64: torch.float32}
    assert {k: at_least_float32(k) for k in kinds} == kinds
    for x in (1, [1., 2.], torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.long)):
        assert as_double(x).dtype == torch.float64 and as_double(x).flatten()[0] == 1


@devices
def test_a_replayed_block_draws_the_same_and_leaves_no_trace(device):
    device = torch.device(device)
    def draw(): return torch.randn(3), torch.randn(3, device=device)
    state = random_state(device)
    first, second = draw(), draw()
    set_random_state(state, device)
    assert all(map(torch.equal, first, draw()))
    with replay(state, device): assert all(map(torch.equal, first, draw()))
    assert all(map(torch.equal, second, draw()))
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), replay(state, device):
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_has_the_shape_and_type_of_the_data_and_comes_from_the_generator_alone():
    x = torch.empty(100, 3, dtype=torch.bfloat16)
    noise, again, other = (randn_like(x, seeded(s)) for s in (1, 1, 2))
    assert noise.shape == x.shape and noise.dtype == x.dtype and abs(noise.float().std() - 1) < 0.1
    assert torch.equal(noise, again) and not torch.equal(noise, other)
    assert torch.equal(randn_like(x), torch.randn(100, 3, dtype=torch.bfloat16, generator=seeded()))


def test_numbers_are_drawn_where_the_generator_lives():
    meta = torch.device("meta")
    assert draw_device(seeded(), meta).type == "cpu" and draw_device(None, meta) == meta


def test_the_default_device_is_the_fastest_of_the_machine(monkeypatch):
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert default_device().type == best


def test_decay_zero_copies_and_decay_one_keeps():
    average, online = AnyRank(), AnyRank()
    before = tensors(average)
    assert update_ema_model_(average, online, 1) is average and same(tensors(average), before)
    assert same(tensors(update_ema_model(average, online, 0)), tensors(online))


def test_average_leaves_the_online_model_and_the_gradients_alone():
    average, online = Mixed(), Mixed()
    before = tensors(online)
    update_ema_model_(average, online, 0.5)
    assert same(tensors(online), before)
    for p in (*average.parameters(), *online.parameters()):
        assert p.grad is None and p.requires_grad


def test_weights_are_averaged_in_one_fused_operation_and_buffers_copied(monkeypatch):
    """Counters, flags and running means, also those that are not saved."""
    average, online, fused, lerp = Mixed(), Mixed(), [], torch._foreach_lerp_
    online.net(gaussian(8, 3))
    online.flags.logical_not_()
    old, new = tensors(average), tensors(online)
    expected = {k: old[k].lerp(new[k], 0.25) for k, _ in average.named_parameters()}
    def noted(*args): return fused.append(len(args[0])) or lerp(*args)
    monkeypatch.setattr(torch, "_foreach_lerp_", noted)
    after = tensors(update_ema_model_(average, online, 0.75))
    buffers = {k: v for k, v in new.items() if k not in expected}
    assert len(buffers) == 5 and same(after, {**expected, **buffers}) and fused == [len(expected)]


def test_the_average_of_a_spectral_norm_has_norm_one():
    """What such a layer knows of its weight is a buffer; averaged, it would belong to no weight."""
    average, online = spectral(), spectral()
    average.load_state_dict(online.state_dict())
    optimizer = torch.optim.SGD(online.parameters(), lr=0.3)
    for step in range(100):
        x = gaussian(16, 4, seed=step)
        optimizer.zero_grad()
        (online(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
        update_ema_model_(average, online, 0.9)
    assert same(dict(average.named_buffers()), dict(online.named_buffers()))
    assert torch.linalg.matrix_norm(average.eval().weight, 2).item() == pytest.approx(1, abs=0.02)


def test_a_buffer_that_is_not_saved_and_only_one_model_has_is_no_difference():
    average, online = nn.Linear(2, 2), nn.Linear(2, 2)
    online.register_buffer("scratch", torch.ones(3), persistent=False)
    update_ema_model_(average, online, 0)
    average.register_buffer("scratch", torch.zeros(5), persistent=False)
    update_ema_model_(average, online, 0)
    assert torch.equal(average.weight, online.weight) and average.scratch.shape == (5,)


def test_an_average_in_half_precision_keeps_what_is_loaded_into_it():
    average, online = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).bfloat16()
    update_ema_model_(average, online, 0.9)
    average.load_state_dict({k: torch.full_like(v, 3.) for k, v in average.state_dict().items()})
    update_ema_model_(average, online, 1)
    assert torch.equal(average.weight, torch.full_like(average.weight, 3.))


def test_average_and_online_model_may_differ_in_type():
    for kinds in ((torch.float32, torch.bfloat16), (torch.float64, torch.float32),
            (torch.bfloat16, torch.float32)):
        average, online = (AnyRank().to(kind) for kind in kinds)
        new = {k: v.to(kinds[0]) for k, v in tensors(online).items()}
        expected = {k: torch.lerp(v, new[k], 0.25) for k, v in tensors(average).items()}
        assert same(tensors(update_ema_model_(average, online, 0.75)), expected)


def test_tied_weights_are_averaged_once_and_stay_tied():
    average, online = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    for net in (average, online): net[1].weight = net[0].weight
    expected = torch.lerp(average[0].weight, online[0].weight, 0.5)
    update_ema_model_(average, online, 0.5)
    assert average[1].weight is average[0].weight and torch.equal(average[0].weight, expected)


def test_a_model_without_floating_tensors_has_only_buffers_to_copy():
    average, online = nn.Identity(), nn.Identity()
    for model, count in ((average, 0), (online, 3)):
        model.register_buffer("count", torch.tensor(count))
    assert update_ema_model_(average, online, 0.9).count == 3


def test_an_average_starts_as_a_frozen_copy_with_float32_in_place_of_half_precision():
    online = Mixed()
    online.double_part = nn.Linear(2, 2).double()
    before, average = tensors(online), average_of(online)
    kinds = {k: v.dtype for k, v in tensors(average).items()}
    assert kinds["half.weight"] == torch.float32 and kinds["double_part.weight"] == torch.float64
    assert kinds["flags"] == torch.bool and kinds["net.1.num_batches_tracked"] == torch.int64
    assert all(torch.equal(v, before[k].to(kinds[k])) for k, v in tensors(average).items())
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in online.parameters())
    assert same(tensors(online), before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_whose_weights_are_computed_can_be_copied():
    """
    `copy.deepcopy` alone refuses tensors that were computed, which these layers keep after a call.
    """
    for layer in (spectral(), nn.utils.weight_norm(nn.Linear(4, 4)),
            nn.utils.spectral_norm(nn.Linear(4, 4))):
        layer(gaussian(2, 4))
        average = average_of(layer)
        answers = [net.eval()(gaussian(2, 4)) for net in (average, layer)]
        assert torch.allclose(*answers, atol=1e-6)


def test_an_average_of_the_same_types_answers_itself():
    net = shake(AnyRank())
    average = average_of(net)
    assert with_weights(net, average) is average
    assert with_weights(nn.DataParallel(net), average) is average


def test_a_network_in_half_precision_answers_with_the_weights_of_its_average():
    """In its own types and by its own computation, buffers and tied weights included."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).bfloat16()
    net[1].weight = net[0].weight
    average, calls = average_of(net), calls_of(net)
    shake(average)
    average[2].running_mean += 1
    x, expected = gaussian(4, 3).bfloat16(), copy.deepcopy(average).bfloat16().eval()
    before = tensors(net.eval()), tensors(average)
    answer = with_weights(net, average)(x)
    assert torch.equal(answer, expected(x)) and not torch.equal(answer, net(x)) and len(calls) == 2
    assert same(tensors(net), before[0]) and same(tensors(average), before[1])


def test_a_compiled_network_answers_by_its_compiled_computation():
    """So that student and target drop the same values: compiled, masks are drawn another way."""
    net = shake(AnyRank(dropout=0.5))
    compiled, average = torch.compile(net, backend="eager"), shake(average_of(net))
    calls = calls_of(net)
    net.requires_grad_()
    nn.init.zeros_(average.out.weight)
    answer = with_weights(compiled, average)(gaussian(4, 3), torch.ones(4))
    assert len(calls) == 1 and torch.equal(answer, average.out.bias.expand(4, 3))


# Refuses

def test_more_axes_than_the_data_are_refused():
    with pytest.raises(ValueError, match="2 axes and other only 1"):
        pad_dims_like(torch.ones(3, 1), torch.ones(3))


def test_what_is_no_generator_is_refused():
    for bad in (0, "cpu", torch.Generator):
        with pytest.raises(TypeError, match="generator must be a torch.Generator"):
            randn_like(torch.ones(2), bad)


def test_a_decay_that_is_no_number_from_zero_to_one_is_refused():
    net = nn.Linear(2, 2)
    for bad, error in ((-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError),
            ("0.9", TypeError), (True, TypeError)):
        with pytest.raises(error, match="^decay"): update_ema_model_(net, net, bad)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="ema_model must be a torch module, got dict"):
        update_ema_model_({}, nn.Identity(), 0.9)
    with pytest.raises(TypeError, match="online_model must be"):
        update_ema_model_(nn.Identity(), lambda x: x, 0.9)


def test_models_that_do_not_match_are_refused_by_name_and_kept():
    for average, online, name in (
            (nn.Linear(3, 3), nn.Linear(4, 3), "weight"), (without_bias(), nn.Linear(3, 3), "bias"),
            (with_buffer(), nn.Linear(3, 3), "extra"), (nn.Linear(3, 3), with_buffer(), "extra"),
            (nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)), "weight"),
            (ConvNet(3), ConvNet(1), "inp.weight")):
        before = tensors(average)
        with pytest.raises(ValueError, match=f"do not match: {name} has shape"):
            update_ema_model_(average, online, 0.9)
        assert same(tensors(average), before)
