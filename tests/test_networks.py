"""The bundled networks: an MLP for points and a U-Net for images."""

import pytest
import torch
from conftest import gaussian, shake

from consistency_models import MLP, UNet, consistency_function
from consistency_models.consistency_training import Levels, consistency_pair
from consistency_models.networks import NoiseEmbedding, ResBlock, SelfAttention


def mlp(**options): return shake(MLP(2, 16, 2, **options))


def unet(**options): return shake(UNet(**{"in_channels": 1, "channels": (8, 16), **options}))


def inputs(network, batch=4):
    """Samples and noise levels that fit a network of `each_network`"""
    shape = (2,) if isinstance(network, MLP) else (network.in_channels, 8, 8)
    return gaussian(batch, *shape), torch.logspace(-2, 1.5, batch)


def seen_by(network, *args):
    """What the layers `inp` and `embed` of a network are given"""
    seen = {}
    for name in ("inp", "embed"):
        note = lambda layer, args, name=name: seen.update({name: args[0]})
        getattr(network, name).register_forward_pre_hook(note)
    network(*args)
    return seen["inp"], seen["embed"]


each_network = pytest.mark.parametrize("build", (mlp, unet))
LABELS = torch.tensor([0, 1, 2, 0])


# ---------------------------------------------------------------- Equals the paper

@each_network
def test_inputs_are_scaled_as_in_edm(build):
    """c_in and c_noise of Table 1, Karras et al. (2022); `precondition=False` applies neither"""
    x, sigma = inputs(build())
    scaled, c_noise = seen_by(build(sigma_data=0.7), x, sigma)
    c_in = 1 / (sigma**2 + 0.49).sqrt()
    torch.testing.assert_close(scaled, x * c_in.reshape(-1, *(1,) * (x.ndim - 1)))
    torch.testing.assert_close(c_noise, sigma.log() / 4)
    raw = seen_by(build(precondition=False), x, sigma)
    assert torch.equal(raw[0], x) and torch.equal(raw[1], sigma)


def test_the_noise_embedding_is_made_of_cosines_and_sines():
    embedding, c, seen = NoiseEmbedding(8, frequencies=4), torch.tensor([-1.2, 0.3]), []
    embedding.mlp.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    assert embedding(c).shape == (2, 8)
    angle = c[:, None] * torch.tensor([1., 16 ** (1 / 3), 16 ** (2 / 3), 16.])
    torch.testing.assert_close(seen[0], torch.cat([angle.cos(), angle.sin()], 1))


def test_attention_is_softmax_of_queries_and_keys():
    """Eq. 1 of Vaswani et al. (2017), for each head, added to the input"""
    layer, x = shake(SelfAttention(6, head_width=3)), gaussian(2, 6, 3, 2)
    query, key, value = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        q, k, v = (t[:, part].transpose(1, 2) for t in (query, key, value))
        heads.append((q @ k.transpose(1, 2) / 3**0.5).softmax(-1) @ v)
    expected = x + layer.out(torch.cat(heads, 2).transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(layer(x), expected)


# ---------------------------------------------------------------- Keeps its promises

def test_mlp_returns_the_shape_of_its_points():
    for dim, width, depth in ((1, 8, 1), (2, 16, 3), (7, 32, 0)):
        y = MLP(dim, width, depth)(gaussian(3, dim), torch.ones(3))
        assert y.shape == (3, dim) and y.isfinite().all()


@pytest.mark.parametrize("options, shape", (
    ({"in_channels": 3}, (1, 3, 8, 16)), ({"channels": (8,)}, (2, 1, 5, 7)),
    ({"channels": (8, 16, 24), "blocks": 2}, (2, 1, 4, 8)), ({"attention": False}, (2, 1, 4, 4)),
    ({"channels": (50, 33)}, (2, 1, 4, 4)), ({"patch": 2}, (2, 1, 8, 4))))
def test_unet_returns_the_shape_of_its_images(options, shape):
    """With any number of channels, resolutions and blocks"""
    y = unet(**options)(gaussian(*shape), torch.ones(shape[0]))
    assert y.shape == shape and y.isfinite().all() and y.abs().sum() > 0


def test_unet_starts_at_zero_and_blocks_change_nothing():
    x, h, emb = gaussian(2, 1, 8, 8), gaussian(2, 16, 4, 4), gaussian(2, 8)
    assert torch.equal(UNet(channels=(8, 16))(x, torch.ones(2)), torch.zeros_like(x))
    assert torch.equal(SelfAttention(16)(h), h) and torch.equal(ResBlock(16, 16, 8)(h, emb), h)


@each_network
def test_networks_work_in_other_types(build):
    network = build(num_classes=3)
    x, sigma = inputs(network)
    expected = network(x, sigma, class_labels=LABELS)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        y = network.to(dtype)(x.to(dtype), sigma.to(dtype), class_labels=LABELS)
        assert y.dtype == dtype
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(y.float(), expected, rtol=0, atol=atol)
        network.float()


@each_network
def test_networks_depend_on_the_level_and_stay_finite_at_extreme_ones(build):
    network = build()
    x, _ = inputs(network)
    assert not torch.allclose(network(x / 2, torch.ones(4)), network(x, torch.full((4,), 2.)))
    for level in (0.002, 80., 1e4):
        assert network(x * level, torch.full((4,), level)).isfinite().all()


@each_network
def test_a_label_changes_the_answer_for_its_own_sample(build):
    network = build(num_classes=3)
    x, sigma = inputs(network)
    a, b = (network(x, sigma, class_labels=torch.tensor(n)) for n in ([0, 1, 2, 0], [0, 1, 1, 0]))
    torch.testing.assert_close(a[[0, 1, 3]], b[[0, 1, 3]])
    assert not torch.allclose(a[2], b[2])
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(network(x, sigma, class_labels=LABELS.to(dtype)), a)


@each_network
def test_samples_of_a_batch_do_not_influence_each_other(build):
    network = build()
    x, sigma = inputs(network)
    alone = torch.cat([network(x[i:i + 1], sigma[i:i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, sigma), alone, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_mode_alone():
    network, without = unet(dropout=0.5), unet(dropout=0.)
    x, sigma = inputs(network)
    assert not torch.equal(network(x, sigma), network(x, sigma))
    assert torch.equal(without(x, sigma), without(x, sigma))
    assert torch.equal(network.eval()(x, sigma), without(x, sigma))


@each_network
def test_labels_are_left_out_in_training_alone(build):
    """Of 2,000 samples 30 % are answered as if they had none, to four standard errors"""
    network = build(num_classes=3, label_dropout=0.3)
    x, sigma = (t[:1].expand(2000, *t.shape[1:]) for t in inputs(network))
    labels = torch.full((2000,), 2)
    without, told = (network.eval()(x, sigma, class_labels=c) for c in (None, labels))
    assert (told - without).flatten(1).abs().amax(1).min() > 1e-3
    answers = network.train()(x, sigma, class_labels=labels)
    far = lambda y: (answers - y).flatten(1).abs().amax(1) > 1e-4
    assert (far(without) != far(told)).all()
    assert abs(far(told).double().mean() - 0.3) < 0.041
    torch.testing.assert_close(build(num_classes=3)(x, sigma, class_labels=labels), told)


@each_network
def test_student_and_target_lose_the_same_labels(build):
    """Asked at one and the same level, they agree to the bit, and draw anew at the next call"""
    network = build(num_classes=3, label_dropout=0.5)
    x, sigma = inputs(network, 64)
    f = consistency_function(network, class_labels=torch.arange(64) % 3)
    predicted, target = consistency_pair(f, f, x, torch.zeros_like(x), Levels(sigma, sigma))
    assert torch.equal(predicted, target)
    assert not torch.equal(f(x, sigma), predicted)


@each_network
def test_all_parameters_receive_gradients(build):
    network = build(num_classes=3)
    network(*inputs(network), class_labels=LABELS).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@each_network
def test_a_network_can_be_built_and_loaded_again(build):
    network = build(num_classes=3)
    other = type(network)(**network.config)
    other.load_state_dict(network.state_dict())
    assert other.config == network.config
    assert torch.equal(*(net(*inputs(net), class_labels=LABELS) for net in (network, other)))


@each_network
def test_no_value_of_a_tensor_is_read(build):
    """Reading one would wait for a GPU; a `meta` tensor has none. Compiles in one graph too"""
    network = build(num_classes=3)
    x, sigma = inputs(network)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    y, expected = (net(x, sigma, class_labels=LABELS) for net in (compiled, network))
    torch.testing.assert_close(y, expected)
    y = network.to("meta")(x.to("meta"), sigma.to("meta"), class_labels=LABELS.to("meta"))
    assert y.shape == x.shape and y.is_meta


# ---------------------------------------------------------------- Refuses

@each_network
def test_class_labels_that_do_not_fit_are_refused(build):
    network, without = build(num_classes=3), build()
    x, sigma = inputs(network)
    with pytest.raises(ValueError, match="3 classes and needs class_labels.*label_dropout="):
        network(x, sigma)
    with pytest.raises(ValueError, match="without classes"): without(x, sigma, class_labels=LABELS)
    for labels in ([0, 1, 2, 0], 1, LABELS.float(), LABELS.cfloat()):
        with pytest.raises(TypeError, match="class_labels"): network(x, sigma, class_labels=labels)
    for labels in ([0, 1, 2, 3], [0, -1, 2, 1]):
        with pytest.raises(ValueError, match="from 0 to 2: this network has 3 classes"):
            network(x, sigma, class_labels=torch.tensor(labels))
    for labels in (LABELS[:3], LABELS[None]):
        with pytest.raises(ValueError, match="class_labels must have shape"):
            network(x, sigma, class_labels=labels)


@each_network
def test_samples_and_levels_that_do_not_fit_are_refused(build):
    network = build()
    x, sigma = inputs(network)
    for bad in (None, [[1., 2.]], x.long()):
        with pytest.raises(TypeError, match="^x"): network(bad, sigma)
    for bad in (x[:, 0], x[None], torch.cat([x, x], 1)):
        with pytest.raises(ValueError, match="x must have shape"): network(bad, sigma[:len(bad)])
    for bad in (sigma[:3], sigma[:, None], sigma[0]):
        with pytest.raises(ValueError, match="sigma must have shape"): network(x, bad)


def test_unet_refuses_images_it_cannot_halve():
    for size in ((7, 8), (8, 6)):
        with pytest.raises(ValueError, match="divisible by 4"):
            unet(channels=(8, 8, 8))(torch.zeros(2, 1, *size), torch.ones(2))
    with pytest.raises(ValueError, match="divisible by 4"):
        unet(patch=2)(torch.zeros(2, 1, 8, 6), torch.ones(2))
