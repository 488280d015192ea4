"""Saved models: what comes back is what was saved, files of others stay, samples repeat, and what cannot be loaded says so."""
import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import gaussian, seeded, shake
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import TensorDataset

import consistency_models
from consistency_models.data import load_digits
from consistency_models.diffusion import euler_step, ode_trajectory
from consistency_models.distillation import DiffusersNetwork
from consistency_models.metrics import recognition_rate, train_classifier
from consistency_models.networks import MLP, UNet
from consistency_models.parameterization import consistency_function
from consistency_models.paths import heun_step
from consistency_models.pretrained import (
    _hub_model,
    build_network,
    bundled_checkpoints,
    class_labels,
    from_diffusers,
    from_pretrained,
    is_diffusion,
    load_image_model,
    num_classes_of,
    push_to_hub,
    sample,
    save_pretrained,
)
from consistency_models.recipes import make_trainer, recipe_for, save_run
from consistency_models.sampling import ConsistencySamplingAndEditing, trajectory
from consistency_models.schedules import karras_schedule

WEIGHTS = Path(consistency_models.__file__).parent / "weights"


def unet():
    return shake(UNet(2, (8, 16), num_classes=3, sigma_data=0.7, patch=2)).eval()


def plain():
    """A network without classes"""
    return shake(UNet(1, (8,), sigma_data=0.7)).eval()


def content(folder):
    """All files of a folder"""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def saved(folder, **changes):
    """A model whose configuration somebody changed"""
    save_pretrained(unet(), folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Equals the paper

def test_sampling_is_algorithm_1_with_one_generator_on_the_cpu():
    net, generator = unet(), seeded(3)
    f = consistency_function(net, class_labels=torch.arange(5) % 3)
    x = f(80 * torch.randn(5, 2, 8, 8, generator=generator), 80.).clamp(-1, 1)
    noise = torch.randn(5, 2, 8, 8, generator=generator)
    x = f(x + (0.8**2 - 0.002**2) ** 0.5 * noise, 0.8).clamp(-1, 1)
    torch.testing.assert_close(sample(net, 5, seed=3, shape=(2, 8, 8)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", (heun_step, euler_step))
def test_sampling_with_a_solver_walks_down_from_one_draw_of_noise(solver):
    net, levels = unet(), [80., 3., 0.5]
    noise = torch.randn(5, 2, 8, 8, generator=seeded(3))
    *_, (_, _, x) = ode_trajectory(net, 80 * noise, levels, solver, class_labels=torch.tensor([2, 0, 2, 0, 2]))
    drawn = sample(net, 5, iter(levels), labels=[2, 0], seed=3, shape=(2, 8, 8), solver=solver)
    torch.testing.assert_close(drawn, x.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small random consistency model in the layout in which diffusers publishes them"""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, num_class_embeds=5,
        resnet_time_scale_shift="scale_shift", down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80., rho=7., clip_denoised=True)
    folder = tmp_path_factory.mktemp("pipeline")
    diffusers.ConsistencyModelPipeline(shake(network), scheduler).save_pretrained(folder)
    loaded = diffusers.ConsistencyModelPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return folder, loaded


@pytest.mark.slow
def test_one_step_equals_the_pipeline_of_diffusers(pipeline):
    folder, theirs = pipeline
    noise, labels = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    expected = theirs(batch_size=2, class_labels=labels, num_inference_steps=1, latents=noise.clone(), output_type="pt").images * 2 - 1
    net = from_diffusers(folder)
    ours = ConsistencySamplingAndEditing()(net, 80 * noise, [80.], start_from_y=True, add_initial_noise=False, clip_denoised=True, class_labels=labels)
    assert expected.std() > 0.1 and torch.allclose(ours, expected, atol=1e-5)
    assert isinstance(net, DiffusersNetwork) and net.sigma_data == 0.5 and not net.training and not is_diffusion(net)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "Euler", "consistency"])
def test_networks_of_diffusers_are_saved_trained_further_and_loaded(kind, pipeline, tmp_path):
    """A start from a folder of diffusers answers as the model does, and the trained one comes back as it was"""
    diffusers, folder = pytest.importorskip("diffusers"), pipeline[0]
    if kind != "consistency":
        scheduler = diffusers.EulerDiscreteScheduler() if kind == "Euler" else diffusers.DDPMScheduler(prediction_type=kind)
        diffusers.DDPMPipeline(pipeline[1].unet, scheduler).save_pretrained(folder := tmp_path / "ddpm")
    x, labels = gaussian(8, 3, 16, 16).clamp(-1, 1), torch.arange(8) % 5
    net = from_diffusers(folder)
    assert is_diffusion(net) == (kind != "consistency") and net.notes["shape"] == [3, 16, 16] and num_classes_of(net) == 5
    data, recipe = TensorDataset(x, labels), recipe_for("images", "ect", steps=2, batch_size=4)
    trainer = make_trainer(data, recipe, start=str(folder))
    assert trainer.net.sigma_data == (0.5 if kind == "consistency" else pytest.approx(x.std().item(), rel=0.01))
    sigma = torch.full((8,), 2.)
    before = net if kind == "consistency" else DiffusersNetwork(net.model, net.scheduler, trainer.net.sigma_data)
    torch.testing.assert_close(trainer.net(x, sigma, class_labels=labels), before(x, sigma, class_labels=labels))
    list(trainer.train())
    save_run(trainer, tmp_path / "run", "pictures", recipe)
    back = from_pretrained(tmp_path / "run")
    torch.testing.assert_close(back(x, sigma, class_labels=labels), trainer.average(x, sigma, class_labels=labels), atol=1e-5, rtol=1e-5)
    assert back.notes["recipe"]["objective"] == "ect" and "channels" not in back.notes["recipe"]


@pytest.mark.slow
def test_bundled_digits_are_digits():
    """A classifier trained here on real digits names what was asked for"""
    judge = train_classifier(*load_digits(), steps=300)
    assert recognition_rate(sample(from_pretrained("digits"), 300), torch.arange(300) % 10, judge) > 0.93


# Keeps its promises

def test_what_comes_back_is_what_was_saved(tmp_path):
    net, x, sigma, labels = unet(), torch.randn(3, 2, 8, 8), torch.tensor([0.01, 1., 80.]), torch.tensor([0, 1, 2])
    save_pretrained(net, tmp_path / "new", shape=[2, 8, 8], recipe={"steps": 1})
    back = from_pretrained(tmp_path / "new")
    assert type(back) is UNet and torch.equal(net(x, sigma, labels), back(x, sigma, labels))
    assert back.sigma_data == 0.7 and not back.training and not any(p.requires_grad for p in back.parameters())
    assert back.notes == {"shape": [2, 8, 8], "recipe": {"steps": 1}}
    save_pretrained(shake(MLP(3, width=8)), tmp_path / "points")
    assert from_pretrained(str(tmp_path / "points")).config["dim"] == 3


def test_a_folder_holds_weights_configuration_and_card_which_others_can_read(tmp_path):
    save_pretrained(unet(), tmp_path, title="A title", quality={"distance": "3.0"})
    assert set(content(tmp_path)) == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "README.md").read_text()
    assert "# A title" in card and "| distance | 3.0 |" in card
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1


def test_the_lines_of_a_card_draw_samples(tmp_path):
    save_pretrained(plain(), tmp_path, shape=[1, 8, 8], name=str(tmp_path))
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("16", "3"), found := {})
    assert found["x"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize("license, line", [(None, []), ("cc-by-nc-4.0", ["license: cc-by-nc-4.0"])], ids=str)
def test_a_license_is_claimed_only_where_one_is_named(tmp_path, license, line):
    save_pretrained(unet(), tmp_path, license=license)
    head = (tmp_path / "README.md").read_text().split("---")[1].splitlines()
    assert [text for text in head if "license" in text] == line and from_pretrained(tmp_path).notes.get("license") == license


def test_bundled_models_load_without_a_network_and_keep_their_license(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert set(bundled_checkpoints()) >= {"digits", "mnist", "mnist-diffusion", "avatars"}
    for name in bundled_checkpoints():
        assert {"title", "shape", "recipe", "quality"} <= set(from_pretrained(name).notes)
        license = "apache-2.0" if name == "emoji" else "mit"           # that of the pictures
        assert f"license: {license}" in (WEIGHTS / name / "README.md").read_text()


def test_files_of_this_package_are_replaced_also_those_of_a_save_that_was_cut_off(tmp_path):
    (tmp_path / "my own.txt").write_text("stays")
    for left in (["README.md", "config.json", "model.safetensors"], ["model.safetensors"], ["config.json", "README.md"]):
        save_pretrained(unet(), tmp_path, title="First")
        for name in set(content(tmp_path)) - {*left, "my own.txt"}: (tmp_path / name).unlink()
        save_pretrained(mlp := shake(MLP(3, width=8)), tmp_path, title="Second")
        assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), from_pretrained(tmp_path).parameters(), strict=True))
        assert "Second" in (tmp_path / "README.md").read_text() and "First" not in (tmp_path / "README.md").read_text()
    assert (tmp_path / "my own.txt").read_text() == "stays"


def test_a_network_without_its_parametrization_is_saved(tmp_path):
    whole = MLP(2, 8, 1)
    parametrizations.spectral_norm(whole.out)
    parametrize.remove_parametrizations(whole.out, "weight")
    state = torch.random.get_rng_state()
    save_pretrained(whole, tmp_path)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(from_pretrained(tmp_path).out.weight, whole.out.weight)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    save_pretrained(unet(), "~/model")
    assert (tmp_path / "model" / "config.json").is_file() and from_pretrained("~/model").config["num_classes"] == 3


def test_older_versions_of_the_hub_hand_over_more(tmp_path):
    save_pretrained(unet(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert _hub_model()._from_pretrained(model_id=str(tmp_path), config=config, proxies=None, resume_download=False).net.config["num_classes"] == 3


def test_push_to_hub_uploads_the_folder(monkeypatch):
    """The upload itself needs the Hub; what would be uploaded is looked at"""
    import huggingface_hub.hub_mixin as mixin
    seen = {}
    class Hub:
        def __init__(self, **kwargs): pass
        def create_repo(self, repo_id, **kwargs): return type("Repo", (), {"repo_id": repo_id})
        def upload_folder(self, repo_id, folder_path, **kwargs):
            seen.update(content(Path(folder_path)))
            return repo_id
    monkeypatch.setattr(mixin, "HfApi", Hub)
    assert push_to_hub(unet(), "me/model", title="Mine", license="apache-2.0") == "me/model"
    assert set(seen) == {"README.md", "config.json", "model.safetensors"}
    assert b'from_pretrained("me/model")' in seen["README.md"] and b"license: apache-2.0" in seen["README.md"]


def test_samples_repeat_and_come_in_parts_of_2000():
    net = shake(MLP(2, width=8, num_classes=3))
    assert torch.equal(sample(net, 5, seed=1, shape=(2,)), sample(net, 5, seed=1, shape=(2,)))
    assert not torch.equal(sample(net, 5, seed=1, shape=(2,)), sample(net, 5, seed=2, shape=(2,)))
    x, labels, generator = sample(net, 4100, [80.], shape=(2,)), torch.arange(4100) % 3, seeded()
    for part in (slice(2000), slice(2000, 4000), slice(4000, None)):
        expected = list(trajectory(net, x[part], [80.], generator=generator, class_labels=labels[part]))[0][2]
        assert torch.equal(x[part], expected) and not x.requires_grad
    x, generator = sample(net, 2100, [80.], labels=1, shape=(2,), solver=heun_step), seeded()
    for part in (slice(2000), slice(2000, None)):
        noise = torch.randn(len(x[part]), 2, generator=generator)
        f = consistency_function(net, sigma_min=0., class_labels=torch.ones(len(noise), dtype=torch.long))
        assert torch.equal(x[part], f(80 * noise, 80.).clamp(-1, 1)) and not x.requires_grad


def test_a_model_whose_notes_call_it_a_diffusion_model_walks_down_18_levels_and_is_asked_for_by_name():
    net = unet()
    levels = karras_schedule(18).flip(0)
    draw = partial(sample, net, 3, labels=1, shape=(2, 8, 8))
    heun, steps = draw(levels, solver=heun_step), draw([80., 0.8])
    assert torch.equal(draw(), steps) and torch.equal(draw(solver=heun_step), heun) and not torch.allclose(heun, steps)
    assert load_image_model(noted := with_notes(net, {"objective": "ict"})) is noted
    with_notes(net, {"objective": "diffusion"})
    assert torch.equal(draw(), heun) and torch.equal(draw([80., 0.8]), draw([80., 0.8], solver=heun_step))
    assert torch.equal(draw(solver=euler_step), draw(levels, solver=euler_step))
    with pytest.raises(ValueError, match="is a diffusion model, which needs many small steps; distill it"): load_image_model(net)
    assert load_image_model(net, diffusion=True) is net


def with_notes(net, recipe):
    net.notes = {"shape": [2, 8, 8], "recipe": recipe}
    return net


def test_labels_are_one_class_or_several_repeated_or_each_in_turn():
    net = UNet(channels=(8,), num_classes=10)
    asked = {"each": (None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]), "one": (7, [7] * 12), "two": ([7, 1], [7, 1] * 6),
             "a tensor": (torch.arange(10).repeat(2).byte(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])}
    for labels, expected in asked.values():
        found = class_labels(net, 12, labels)["class_labels"]
        assert found.tolist() == expected and found.dtype == torch.int64
    assert num_classes_of(net) == 10 and num_classes_of(plain()) == num_classes_of(lambda x, sigma: x) == 0
    assert class_labels(plain(), 12) == {}


def test_a_model_of_images_is_loaded_by_its_name_or_taken_as_it_is():
    net = plain().train()
    net.notes = {"shape": [1, 8, 8]}
    assert load_image_model(net, torch.device("cpu")) is net and not net.training
    assert load_image_model("digits").notes["shape"] == [1, 8, 8]


# Refuses

FOREIGN = [
    ("README.md", b"# My thesis\n"), ("README.md", b""), ("README.md", b"\xff\xfe"), ("README.md", b"---\nlibrary_name: consistency_models\n---\n# By hand\n"),
    ("config.json", b"{}"), ("config.json", b"[1]"), ("config.json", b"not json"), ("config.json", b"\xff"),
    ("model.safetensors", b"other weights"), ("model.safetensors", bytes(100))]


def test_files_of_others_are_never_replaced(tmp_path):
    for i, (name, theirs) in enumerate(FOREIGN):
        (folder := tmp_path / str(i)).mkdir()
        (folder / name).write_bytes(theirs)
        with pytest.raises(FileExistsError, match=f"{name} was not written by this package"): save_pretrained(unet(), folder)
        assert content(folder) == {name: theirs}


def test_weights_links_and_folders_of_others_are_never_replaced(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileExistsError, match="model.safetensors"): save_pretrained(unet(), tmp_path)
    for name, make in (("a link", lambda p: p.symlink_to("nowhere")), ("a folder", lambda p: p.mkdir())):
        (folder := tmp_path / name).mkdir()
        make(folder / "README.md")
        with pytest.raises(FileExistsError, match="README.md"): save_pretrained(unet(), folder)


def test_of_a_copy_of_bundled_weights_the_card_stays(tmp_path):
    """Where the configuration holds no hash of the card, nobody knows who wrote it"""
    shutil.copytree(WEIGHTS / "digits", tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "card"}))
    with pytest.raises(FileExistsError, match="README.md"): save_pretrained(unet(), tmp_path / "copy")
    (tmp_path / "copy" / "README.md").unlink()
    save_pretrained(unet(), tmp_path / "copy")
    assert from_pretrained(tmp_path / "copy").config["num_classes"] == 3


@pytest.mark.parametrize("change", [lambda b: b + b"\nMy notes.\n", lambda b: b.replace(b"A consistency model", b"My model"), lambda b: b.replace(b"\n", b"\r\n")],
                         ids=["more", "other words", "other line ends"])
def test_a_card_that_somebody_changed_is_never_replaced(tmp_path, change):
    save_pretrained(unet(), tmp_path, description="Grüße\r\n")
    save_pretrained(unet(), tmp_path)                  # unchanged, it is replaced
    card = tmp_path / "README.md"
    card.write_bytes(change(card.read_bytes()))
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="README.md was not written by this package, or was changed since"): save_pretrained(MLP(2, 8, 1), tmp_path)
    assert content(tmp_path) == before and from_pretrained(tmp_path).notes == {}


@pytest.mark.parametrize("change, name", [
    (lambda net: parametrizations.spectral_norm(net.out), r"out\.parametrizations\.weight\.0\._u"), (lambda net: prune.identity(net.out, "weight"), r"out\.weight"),
    (lambda net: net.register_buffer("count", torch.zeros(1)), r"count is of shape \(1,\) in net and missing"),
    (lambda net: setattr(net, "out", torch.nn.Identity()), r"out\.bias is missing in net"),
    (lambda net: setattr(net, "out", torch.nn.Linear(8, 5)), r"out\.bias is of shape \(5,\)")],
    ids=["parametrization", "pruning", "buffer", "layer gone", "layer changed"])
def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path, change, name):
    change(net := MLP(2, 8, 1))
    with pytest.raises(ValueError, match=f"{name}.*undo what was added"): save_pretrained(net, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_saved_leaves_everything_as_it_was(tmp_path):
    save_pretrained(unet(), tmp_path, title="First")
    before = content(tmp_path)
    for options, error, match in (
        ({"quality": {"distance": torch.ones(1)}}, TypeError, "JSON"), ({"recipe": "by hand"}, TypeError, "recipe must be a dictionary"), ({"license": ""}, ValueError, "license"),
        ({"license": "two words"}, ValueError, "license"), ({"license": "mit\nlibrary_name: other"}, ValueError, "license"), ({"license": 3.5j}, ValueError, "license")):
        with pytest.raises(error, match=match): save_pretrained(unet(), tmp_path, **options)
    with pytest.raises(TypeError, match="UNet or MLP"): save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    assert content(tmp_path) == before


def test_names_that_lead_nowhere():
    for name in ("nothing", "a/b/c", "/no/such/folder", "../digits/x", "", "~/nofolder", "./nofolder", "nofolder/", "a b/c", ".hidden/x"):
        with pytest.raises(ValueError, match=r"there is no model .* a bundled model \(avatars, digits, emoji, mnist, .*\), a folder that exists"): from_pretrained(name)


@pytest.mark.parametrize("changes", [
    {"network": "os.system"}, {"network": None}, {"arguments": {"command": "x"}}, {"arguments": None}, {"arguments": {"channels": [8, 32]}}, {"arguments": {"channels": {"a": 1}}},
    {"notes": None}, {"notes": [1]}], ids=str)
def test_a_configuration_that_does_not_fit(tmp_path, changes):
    with pytest.raises(ValueError, match=r"config\.json"): from_pretrained(saved(tmp_path, **changes))


def test_a_configuration_that_is_none(tmp_path):
    for text in (b"[1]", b"null", b"3", b"{", b"", b"\xff\xfe"):
        (saved(tmp_path) / "config.json").write_bytes(text)
        with pytest.raises(ValueError, match=f"{tmp_path}/?config.json|{tmp_path} has no config.json"): from_pretrained(tmp_path)
        (tmp_path / "config.json").unlink()
        (tmp_path / "README.md").unlink()
    for config in ({}, {"network": []}, {"network": "MLP", "arguments": 3}):
        with pytest.raises(ValueError, match="configuration"): build_network(config)


@pytest.mark.parametrize("change", [lambda b: b[:100], lambda b: os.urandom(500), lambda b: pickle.dumps(print)], ids=["cut off", "noise", "pickle"])
def test_damaged_weights(tmp_path, change):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="model.safetensors is damaged"): from_pretrained(tmp_path)


def test_weights_that_are_missing_in_whole_or_in_part(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "out.bias"}, path)
    with pytest.raises(ValueError, match="out.bias"): from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="model.safetensors is missing"): from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json"): from_pretrained(tmp_path)


def test_labels_that_no_class_has():
    net = UNet(channels=(8,), num_classes=10)
    for labels in (10, -1, [0, 11], torch.tensor([3, 300])):
        with pytest.raises(ValueError, match="labels must be classes from 0 to 9, got"): class_labels(net, 3, labels)
    for labels in (1.5, [], "a", True, torch.ones(3)):
        with pytest.raises(TypeError, match="labels must be"): class_labels(net, 3, labels)
    with pytest.raises(ValueError, match="no classes"): sample(plain(), 3, labels=1, shape=(1, 8, 8))


def test_samples_of_no_number_and_of_no_shape():
    with pytest.raises(ValueError, match="n must be at least 1"): sample(plain(), 0, shape=(1, 8, 8))
    with pytest.raises(ValueError, match="sigmas must descend"): sample(plain(), 1, [0.8, 80.], shape=(1, 8, 8))
    with pytest.raises(ValueError, match="shape must be given"): sample(plain(), 1)
    for notes in ({}, {"shape": [2]}):
        (net := plain()).notes = notes
        with pytest.raises(ValueError, match="shape of its images"): load_image_model(net)
