"""Latents: an autoencoder, models that work in its latents, and guidance weights as an input."""
import copy
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from consistency_models import (
    MLP,
    ConsistencyDistillation,
    ConsistencyFunction,
    ConsistencySamplingAndEditing,
    DiffusionTraining,
    UNet,
    cli,
    colorize,
    consistency_function,
    denoise,
    edit,
    from_diffusers,
    from_pretrained,
    guided,
    inpaint,
    interpolate_latents,
    sample,
    save_pretrained,
    stroke_to_image,
    super_resolve,
    trajectory,
    two_moons,
    with_weight,
)
from consistency_models.cli import main
from consistency_models.distillation import DiffusersNetwork, without_weight
from consistency_models.editing import LUMINANCE
from consistency_models.editor import editing_explorer
from consistency_models.explorers import sampling_explorer
from consistency_models.latents import (
    Autoencoder,
    LatentNetwork,
    autoencoder_loss,
    decoded,
    encode_dataset,
    train_autoencoder,
    varied,
)
from consistency_models.parameterization import gaussian_consistency_function
from consistency_models.pictures import save_grid
from consistency_models.recipes import make_trainer, recipe_for


def seeded(seed=0): return torch.Generator().manual_seed(seed)


turned = torch.linalg.qr(torch.randn(12, 12, generator=seeded()))[0]
x = torch.rand(4, 3, 8, 8, generator=seeded()) * 1.6 - 0.8


def encoder(x):
    """A linear autoencoder that loses nothing: 2 by 2 pixels become 12 turned channels"""
    return torch.einsum("ij,njhw->nihw", turned, F.pixel_unshuffle(x, 2))


def decoder(z): return F.pixel_shuffle(torch.einsum("ji,njhw->nihw", turned, z), 2)


@pytest.fixture(scope="module")
def teacher():
    """A diffusion model of two moons that also answers without a label"""
    torch.manual_seed(0)
    net = MLP(width=64, depth=2, num_classes=2, label_dropout=0.1)
    return train(net, DiffusionTraining(), 1200)


def train(net, objective, steps, rate=3e-3):
    """A small loop; every other point is of the other moon"""
    objective.attach(net.train())
    optimizer = torch.optim.Adam(net.parameters(), rate)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for k in range(steps):
        points = two_moons(256, generator=seeded(k))
        output = objective.step(net, points, k, steps, seeded(k), class_labels=torch.arange(256) % 2)
        optimizer.zero_grad()
        objective.loss(output).mean().backward()
        optimizer.step()
        decay.step()
    return net.eval()


# Equals the paper

@pytest.mark.parametrize("scale", (1., 0.3))
def test_an_autoencoder_that_loses_nothing_changes_nothing(scale):
    """Gaussian data look the same in turned coordinates, so both models draw the same from the same noise"""
    own = ConsistencyFunction(lambda x, s: gaussian_consistency_function(x, s, 0., 0.5))
    inside = ConsistencyFunction(lambda z, s: scale * gaussian_consistency_function(z / scale, s / scale, 0., 0.5))
    f = decoded(inside, decoder, scale, encoder)
    z = torch.randn(4, 12, 4, 4, generator=seeded())
    (_, noisy, drawn), = trajectory(f, 80 * scale * z, [80. * scale], start_from_y=True, add_initial_noise=False)
    assert torch.allclose(drawn, own(80 * decoder(z), 80.), atol=1e-4) and torch.equal(noisy, 80 * scale * z)


@pytest.mark.parametrize("task", (
    lambda f: inpaint(f, torch.where(hole == 1, 0., x), hole, [80., 2., 0.3]), lambda f: colorize(f, gray, [80., 2., 0.3]),
    lambda f: super_resolve(f, F.avg_pool2d(x, 4), 4, [80., 2.]), lambda f: stroke_to_image(f, x)), ids=("inpaint", "colorize", "enlarge", "strokes"))
def test_a_model_of_latents_that_knows_the_truth_edits_into_the_truth(task):
    f = decoded(ConsistencyFunction(lambda z, s: encoder(x)), decoder, 1., encoder)
    assert torch.allclose(task(f), x, atol=1e-5)


hole = torch.zeros(8, 8)
hole[4:, 2:] = 1
gray = (x * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)


def test_guidance_0_leaves_the_label_out_1_is_the_label_and_each_sample_has_its_own(teacher):
    points, sigma, labels = torch.randn(6, 2, generator=seeded()), torch.full((6,), 2.), torch.arange(6) % 2
    net, weights = guided(teacher), torch.tensor([0., 0., 1., 1., 3., 3.])
    with torch.no_grad():
        without, told = teacher(points, sigma), teacher(points, sigma, class_labels=labels)
        each = net(points, sigma, class_labels=labels, weight=weights)
        fixed = guided(teacher, 3.)(points, sigma, class_labels=labels)
    assert torch.equal(each[:2], without[:2]) and torch.allclose(each[2:4], told[2:4], atol=1e-6)
    assert torch.allclose(each[4:], fixed[4:], atol=1e-5) and not torch.allclose(each[4:], told[4:], atol=1e-2)


@pytest.mark.slow
def test_a_student_of_many_weights_is_at_each_the_student_of_that_weight(teacher):
    """By the mean difference of their samples from the same noise, beside that of students of other weights"""
    labels, noise = torch.arange(1000) % 2, 80 * torch.randn(1000, 2, generator=seeded(1))
    torch.manual_seed(0)
    every = train(with_weight(teacher), ConsistencyDistillation(teacher, weights=(0, 4)), 800)
    def jump(net, **given):
        with torch.no_grad(): return consistency_function(net, class_labels=labels, **given)(noise, 80.)
    drawn = {w: jump(every, weight=w) for w in (0., 2., 4.)}
    for w in drawn:
        one = jump(train(copy.deepcopy(teacher), ConsistencyDistillation(guided(teacher, w)), 400))
        gaps = {v: (one - other).norm(dim=1).median().item() for v, other in drawn.items()}
        assert min(gaps, key=gaps.get) == w and gaps[w] < 0.12, (w, gaps)


def test_sampling_equals_the_scheduler_of_latent_consistency_models():
    diffusers = pytest.importorskip("diffusers")
    pipe = small_pipeline(diffusers, "LCMScheduler")
    net, scheduler = from_diffusers(pipe), pipe.scheduler
    scheduler.set_timesteps(4)
    g, text, weight = seeded(), torch.randn(2, 5, 16, generator=seeded()), torch.full((2,), 7.5)
    z, *noises = torch.randn(4, 2, 4, 8, 8, generator=g)
    rates = torch.exp(torch.arange(16) * -math.log(10_000) / 15)
    angles = 1000 * (weight - 1)[:, None] * rates              # w counts from 0 there
    told = torch.cat([angles.sin(), angles.cos()], 1)
    f = consistency_function(net, sigma_min=0., encoder_hidden_states=text, weight=weight)
    sigmas = net.net.ln_sigmas[scheduler.timesteps].exp().float()
    mine, theirs, alphas = (1 + sigmas[0] ** 2).sqrt() * z, z, scheduler.alphas_cumprod
    for i, (t, sigma) in enumerate(zip(scheduler.timesteps, sigmas)):
        with torch.no_grad():
            epsilon = pipe.unet(theirs, t, encoder_hidden_states=text, timestep_cond=told).sample
            theirs, wanted = scheduler.step(epsilon, t, theirs, return_dict=False)
            got = f(mine, sigma)
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
        if i == 3: break
        later = scheduler.timesteps[i + 1]
        theirs = alphas[later].sqrt() * wanted + (1 - alphas[later]).sqrt() * noises[i]
        mine = got + sigmas[i + 1] * noises[i]


def small_pipeline(diffusers, scheduler):
    """A latent diffusion pipeline of random weights, without a text encoder"""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        8, 4, 4, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=16, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), time_cond_proj_dim=32)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(16, 32), norm_num_groups=8)
    noise = getattr(diffusers, scheduler)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return SimpleNamespace(unet=unet.eval(), vae=vae.eval(), scheduler=noise)


def test_the_autoencoder_of_a_pipeline_goes_there_and_back_with_scale_and_shift():
    diffusers = pytest.importorskip("diffusers")
    pipe = small_pipeline(diffusers, "DDPMScheduler")
    pipe.vae.register_to_config(shift_factor=0.2, scaling_factor=0.5)
    net, images = from_diffusers(pipe), torch.rand(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        z = pipe.vae.encode(images).latent_dist.mode()
        assert torch.allclose(net.space.encode(images), 0.5 * (z - 0.2), atol=1e-6)
        assert torch.allclose(net.space.decode(0.5 * (z - 0.2)), pipe.vae.decode(z).sample.clamp(-1, 1), atol=1e-5)
    assert net.notes == {"shape": [3, 16, 16], "recipe": {"objective": "diffusion"}}


def test_a_pipeline_is_distilled_with_gradients_for_all_weights_of_the_student():
    diffusers = pytest.importorskip("diffusers")
    pipe = small_pipeline(diffusers, "DDPMScheduler")
    empty = {"encoder_hidden_states": torch.randn(1, 5, 16, generator=seeded())}
    denoiser = DiffusersNetwork(pipe.unet, pipe.scheduler, empty=empty)
    student, z = copy.deepcopy(denoiser).train(), torch.randn(4, 4, 8, 8, generator=seeded())
    objective = ConsistencyDistillation(denoiser, weights=(1, 14), sigma_min=0.03, sigma_max=14.)
    objective.attach(student)
    text = torch.randn(4, 5, 16, generator=seeded(1))
    output = objective.step(student, z, 0, 1, seeded(), encoder_hidden_states=text)
    objective.loss(output).mean().backward()
    missing = [k for k, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing and student.model.time_embedding.cond_proj.weight.grad.abs().max() > 0
    levels, noisy = output.levels, None
    generator = seeded()
    low_high = torch.rand(4, generator=generator) * 13 + 1
    torch.randint(0, 17, (4,), generator=generator)
    noisy = z + levels.upper.view(4, 1, 1, 1) * torch.randn(z.shape, generator=generator)
    with torch.no_grad():       # the pair, written out
        D = consistency_function(guided(denoiser), sigma_min=0., encoder_hidden_states=text, weight=low_high)
        lower, upper = (t.view(4, 1, 1, 1) for t in (levels.lower, levels.upper))
        slope = (noisy - D(noisy, levels.upper)) / upper
        there = noisy + (lower - upper) * slope
        there = noisy + (lower - upper) * (slope + (there - D(there, levels.lower)) / lower) / 2
        f = consistency_function(student, 0.5, 0.03, encoder_hidden_states=text, weight=low_high)
        assert torch.allclose(output.target, f(there, levels.lower), atol=1e-3)


# Keeps its promises

@pytest.mark.parametrize("name", ["digits", "avatars"])
def test_a_network_without_its_weight_answers_as_at_the_usual_one(name):
    net = from_pretrained(name)
    plain, noise = without_weight(net).eval(), torch.randn(4, *net.notes["shape"], generator=seeded())
    sigma, labels = torch.tensor([0.1, 1., 9., 80.]), torch.arange(4)
    with torch.no_grad(): assert torch.allclose(plain(noise, sigma, labels), net(noise, sigma, labels), atol=1e-5)
    assert "usual_weight" not in plain.config and plain.config == {k: v for k, v in net.config.items() if k != "usual_weight"}
    small = with_weight(MLP(num_classes=2), 3.)
    torch.nn.init.normal_(small.guide.mlp[-1].bias, generator=seeded())
    points = torch.randn(4, 2, generator=seeded())
    assert torch.allclose(without_weight(small)(points, sigma, labels % 2), small(points, sigma, labels % 2), atol=1e-6)


def test_a_network_with_a_weight_begins_as_it_was(teacher):
    points, sigma, labels = torch.randn(6, 2, generator=seeded()), torch.full((6,), 2.), torch.arange(6) % 2
    net = with_weight(teacher)
    assert net.config["usual_weight"] == 1 and net.config["label_dropout"] == 0
    assert torch.equal(net(points, sigma, labels, 5.), teacher(points, sigma, labels))
    torch.nn.init.ones_(net.guide.mlp[-1].weight)
    answers = [net(points, sigma, labels, weight) for weight in (None, 1, torch.ones(6), 2.)]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[1], answers[2]) and not torch.allclose(answers[0], answers[3])


@pytest.fixture(scope="module")
def latent():
    """A network of latents and an autoencoder, both of random weights, with notes"""
    torch.manual_seed(0)
    space = Autoencoder(3, 4, (8, 16), 1)
    space.scale.fill_(0.7)
    net = LatentNetwork(UNet(4, (8, 16), num_classes=3, usual_weight=1.), space).eval().requires_grad_(False)
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)
    net.notes = {"shape": [3, 16, 16]}
    return net


def test_a_model_of_latents_is_saved_and_loaded_whole(latent, tmp_path):
    save_pretrained(latent, tmp_path, **latent.notes)
    again = from_pretrained(tmp_path)
    assert type(again) is LatentNetwork and again.space.scale == latent.space.scale
    assert torch.equal(sample(latent, 5, labels=2, weight=3.), sample(again, 5, labels=2, weight=3.))


def test_samples_are_pictures_and_weights_count(latent):
    drawn = sample(latent, 6, [80., 1.])
    assert drawn.shape == (6, 3, 16, 16) and drawn.abs().max() <= 1
    assert not torch.allclose(drawn, sample(latent, 6, [80., 1.], weight=6.))
    torch.manual_seed(0)
    diffusion = LatentNetwork(UNet(4, (8, 16), num_classes=3, label_dropout=0.1), latent.space).eval()
    for p in diffusion.net.parameters(): torch.nn.init.normal_(p, std=0.1)
    diffusion.notes = latent.notes | {"recipe": {"objective": "diffusion"}}
    walked, led = sample(diffusion, 6), sample(diffusion, 6, weight=3.)
    assert led.shape == walked.shape == (6, 3, 16, 16) and not torch.equal(led, walked)


def test_known_pixels_come_back_bit_for_bit_and_noise_is_of_latents(latent):
    pictures, labels = torch.rand(2, 3, 16, 16, generator=seeded()) - 0.5, torch.tensor([0, 1])
    mask = torch.zeros(16, 16)
    mask[:, 5:] = 1
    done = inpaint(latent, pictures, mask, [80., 1., 0.1], generator=seeded(), class_labels=labels)
    assert torch.equal(done[..., :5], pictures[..., :5]) and not torch.equal(done[..., 5:], pictures[..., 5:])
    ends = torch.randn(2, 1, 4, 4, 4, generator=seeded())
    assert interpolate_latents(latent, *ends, [0., 0.5, 1.], class_labels=torch.zeros(3).long()).shape == (3, 3, 16, 16)


def test_a_data_set_is_encoded_once_with_its_labels(latent):
    images, labels = torch.rand(7, 3, 16, 16, generator=seeded()), torch.arange(7)
    for data, parts in ((images, 1), (torch.utils.data.TensorDataset(images, labels), 2)):
        encoded = encode_dataset(latent.space, data, 3)
        assert len(encoded.tensors) == parts and torch.allclose(encoded.tensors[0], latent.space.encode(images), atol=1e-5)
    assert torch.equal(encoded.tensors[1], labels)


@pytest.mark.slow
def test_an_autoencoder_learns_to_give_back_and_its_latents_have_a_known_size():
    shapes = F.interpolate(torch.rand(300, 3, 4, 4, generator=seeded()) * 2 - 1, 16)
    net = train_autoencoder(shapes[50:], 250, 32, channels=(16, 32), blocks=1, patch=1)
    again = net.decode(net.encode(shapes[:50]))
    flat = F.interpolate(F.avg_pool2d(shapes[:50], 16), 16)
    assert (again - shapes[:50]).square().mean() < 0.1 * (flat - shapes[:50]).square().mean()
    assert net.encode(shapes[50:]).std() == pytest.approx(0.5, abs=0.02) and not next(net.parameters()).requires_grad


def test_the_scale_of_latents_is_measured_and_used_both_ways(latent):
    space, images = latent.space, torch.rand(4, 3, 16, 16, generator=seeded())
    z = space.encode(images)
    assert torch.allclose(z, 0.7 * space.distribution(images)[0])
    assert torch.allclose(space.decode(z), space.decoder(z / 0.7).clamp(-1, 1))
    assert torch.allclose(decoded(latent, decoder, 0.3, encoder).space.encode(x), 0.3 * encoder(x))
    few = train_autoencoder(images, 2, 4, channels=(8, 16), blocks=1, patch=1, device=torch.device("cpu"))
    assert few.encode(images).std() == pytest.approx(0.5, abs=1e-4)


def test_the_loss_of_an_autoencoder_written_out():
    torch.manual_seed(0)
    net, images = Autoencoder(3, 4, (8, 16), 1), torch.rand(3, 3, 8, 8, generator=seeded())
    mean, log_variance = net.distribution(images)
    z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=seeded())
    error = net.decoder(z) - images
    edges = error.diff(dim=3).abs().mean((1, 2, 3)) + error.diff(dim=2).abs().mean((1, 2, 3))
    normal = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0., 1.))
    wanted = error.abs().mean((1, 2, 3)) + edges + 0.2 * normal.mean((1, 2, 3))
    assert torch.allclose(autoencoder_loss(net, images, 0.2, seeded()), wanted, atol=1e-5)


def test_varied_pictures_are_mirrored_shifted_and_recolored():
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, 5, 6] = 1
    many = varied(image.expand(400, -1, -1, -1), seeded())
    place = many.amax(1).flatten(1).argmax(1)
    assert many.shape == (400, 3, 16, 16) and set(many.amax((2, 3)).argmax(1).tolist()) == {0, 1, 2}
    assert set((place // 16).tolist()) == set(range(1, 10)) and set((place % 16).tolist()) == set(range(2, 14))
    assert varied(image[:, :1], seeded()).shape == (1, 1, 16, 16)


def test_widgets_of_a_model_of_latents_and_weights(latent):
    explorer, editor = sampling_explorer(latent), editing_explorer(latent)
    for live in (explorer, editor):
        before = live.picture.value
        live.controls["weight"].value = 6.
        assert live.picture.value != before
    assert "denoise" not in editor.controls["task"].options and {"inpaint", "interpolate"} < set(editor.controls["task"].options)
    editor.controls["task"].value = "interpolate"
    assert editor.picture.value != before


@pytest.mark.slow
def test_a_range_of_weights_on_the_command_line_gives_a_student_that_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "train --data digits --steps 2 --batch-size 4 --channels 8,16 --guidance 0,1.5,8 --out run"
    assert main(command.split()) == 0 and main("sample run --n 4 --weight 5 --out five.png".split()) == 0
    net = from_pretrained("run")
    assert net.config["usual_weight"] == 1.5 and net.notes["recipe"]["guidance"] == "(0.0, 1.5, 8.0)" and "usual_weight" not in from_pretrained("run/teacher").config
    assert main("sample run/teacher --n 4 --sigmas 80,1 --weight 5 --out five.png".split()) == 0


# Refuses

def test_what_does_not_fit_is_refused_by_name(latent, teacher):
    points, sigma, labels = torch.randn(4, 2), torch.ones(4), torch.zeros(4).long()
    with pytest.raises(ValueError, match="weight given to a network that takes none"): teacher(points, sigma, labels, 2.)
    with pytest.raises(ValueError, match=r"weight must be one number or have shape \(4,\)"): with_weight(teacher)(points, sigma, labels, torch.ones(3))
    with pytest.raises(ValueError, match="takes no weight yet"): with_weight(with_weight(teacher))
    with pytest.raises(ValueError, match="has classes"): with_weight(MLP())
    with pytest.raises(ValueError, match="weights must"): ConsistencyDistillation(teacher, weights=(3, 1))
    with pytest.raises(ValueError, match="x must have shape"): latent.space.encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match="latents"): denoise(latent, torch.zeros(2, 3, 16, 16), 0.5, class_labels=labels[:2])
    with pytest.raises(ValueError, match="scale"): decoded(latent, decoder, 0.)
    with pytest.raises(ValueError, match="interpolate_latents"): ConsistencySamplingAndEditing().interpolate(latent, x, x, 0.5, [2.])
    with pytest.raises(TypeError, match="unguided"): ConsistencyDistillation(guided(teacher, 2.), weights=(0, 8))
    with pytest.raises(ValueError, match="has classes"): with_weight(latent)
    without = decoded(ConsistencyFunction(lambda z, s: z / 80), decoder)
    assert edit(without, torch.empty(2, 12, 4, 4), sigmas=[80.]).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="encoder="): inpaint(without, x, hole, [80.])
    with pytest.raises(TypeError, match="unet, scheduler and vae"): from_diffusers(latent)


# From the command line

@pytest.fixture
def spaced(tmp_path):
    """A folder of twelve pictures in two classes, and an autoencoder with random weights"""
    for i in range(12):
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        save_grid(torch.rand(1, 3, 16, 16, generator=seeded(i)), tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png", 1)
    torch.manual_seed(0)
    save_pretrained(Autoencoder(3, 4, (8, 16)), tmp_path / "space")
    return tmp_path


def run_cli(folder, *more):
    return main(["train", "--data", str(folder / "pictures"), "--labels", "--size", "16", "--steps", "2", "--batch-size", "2",
                 "--autoencoder", str(folder / "space"), *more])


def test_one_command_trains_teacher_and_student_in_latents_and_the_model_gives_pictures(spaced):
    assert run_cli(spaced, "--out", str(spaced / "run"), "--channels", "8,16", "--patch", "1", "--guidance", "0,1.5,4") == 0
    net, teacher, space = (from_pretrained(spaced / name) for name in ("run", "run/teacher", "space"))
    assert net.notes["shape"] == teacher.notes["shape"] == [3, 16, 16] and net.notes["classes"] == ["a", "b"]
    assert net.notes["guidance"] == [0, 1.5, 4] and "guidance" not in teacher.notes
    for part in (net, teacher):
        assert all(torch.equal(v, part.space.state_dict()[k]) for k, v in space.state_dict().items())
        assert part.net.config["in_channels"] == 4 and sample(part, 2, labels=[0, 1], weight=2.).shape == (2, 3, 16, 16)
    assert f"--autoencoder {spaced}/space" in net.notes["recipe"]["command"]
    picture = spaced / "samples.png"
    assert main(["sample", str(spaced / "run"), "--n", "2", "--labels", "a", "--weight", "3", "--out", str(picture)]) == 0 and picture.exists()


def test_an_autoencoder_is_trained_if_there_is_none_but_not_for_a_plan(spaced, monkeypatch, capsys):
    shutil.rmtree(spaced / "space")
    assert run_cli(spaced, "--only-plan") == 0 and not (spaced / "space").exists()
    assert (said := capsys.readouterr().out).count("first an autoencoder") == 2 and "4 x 4 x 4" in said
    monkeypatch.setattr(cli, "train_autoencoder", lambda x, device: train_autoencoder(x, 2, 4, device=device, channels=(8, 16)))
    monkeypatch.setenv("HOME", str(spaced))
    small = "--objective", "diffusion", "--channels", "8,16", "--patch", "1", "--autoencoder", "~/space"
    assert run_cli(spaced, *small, "--out", str(spaced / "run")) == 0
    first = from_pretrained(spaced / "space")
    assert isinstance(first, Autoencoder) and from_pretrained(spaced / "run").net.config["in_channels"] == 4
    assert "net.decode(net.encode(images))" in (spaced / "space" / "README.md").read_text()
    assert run_cli(spaced, *small, "--out", str(spaced / "again")) == 0
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in from_pretrained(spaced / "space").state_dict().items())
    shutil.rmtree(spaced / "space")
    assert run_cli(spaced, *small, "--out", str(spaced / "run"), "--resume") == 1 and "was begun in its latents" in capsys.readouterr().err


def test_what_does_not_fit_latents_is_said_before_anything_is_trained(spaced, monkeypatch, capsys):
    monkeypatch.setattr(cli, "train_autoencoder", lambda x, device: pytest.fail("trained"))
    for options, what in ((["--gray"], "for images of 3 channels"), (["--size", "18"], "with sizes that 4 divides"),
                          (["--autoencoder", str(spaced / "new"), "--channels", "8,16", "--patch", "4"], "in latents of shape"),
                          (["--autoencoder", str(spaced / "new"), "--size", "20"], "must be divisible by")):
        assert run_cli(spaced, "--out", str(spaced / "x"), *options) == 1
        assert what in capsys.readouterr().err
    assert main(["sample", str(spaced / "space")]) == 1 and "draws nothing by itself" in capsys.readouterr().err
    latents, facts = torch.zeros(4, 4, 4, 4), {"objective": "ict"} | recipe_for("images", steps=1)
    with pytest.raises(TypeError, match="space must be an Autoencoder"): make_trainer(torch.utils.data.TensorDataset(latents), facts, space=UNet(4))


def test_a_model_of_other_latents_sizes_or_of_pixels_is_refused(spaced, capsys):
    assert run_cli(spaced, "--objective", "diffusion", "--out", str(spaced / "first"), "--channels", "8,16", "--patch", "1") == 0
    assert run_cli(spaced, "--size", "32", "--teacher", str(spaced / "first"), "--out", str(spaced / "second")) == 1
    assert "makes images of shape [4, 4, 4], the data has [4, 8, 8]" in capsys.readouterr().err
    assert main(["train", "--data", str(spaced / "pictures"), "--labels", "--size", "16", "--teacher", str(spaced / "first")]) == 1
    assert "give its autoencoder too" in capsys.readouterr().err
    torch.manual_seed(1)
    shutil.rmtree(spaced / "space")
    save_pretrained(Autoencoder(3, 4, (8, 16)), spaced / "space")
    for start, what in ((spaced / "first", "the latents of another autoencoder"), ("avatars", "was trained on pixels")):
        assert run_cli(spaced, "--objective", "ect", "--start", str(start), "--out", str(spaced / "second")) == 1
        assert what in capsys.readouterr().err
    save_pretrained(UNet(3, (8, 16)), spaced / "net")
    assert main(["train", "--data", str(spaced / "pictures"), "--size", "16", "--autoencoder", str(spaced / "net")]) == 1
    assert "is no autoencoder" in capsys.readouterr().err
