"""Saved networks: round trips, refusals, bundled checkpoints without a network, and diffusers."""
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import shake
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

from consistency_models import (
    MLP,
    ConsistencySamplingAndEditing,
    Precondition,
    UNet,
    build_network,
    bundled_checkpoints,
    from_diffusers,
    from_pretrained,
    push_to_hub,
    save_pretrained,
)


def unet():
    return shake(UNet(2, (8, 16), num_classes=3, sigma_data=0.7, patch=2)).eval()


def test_round_trip_computes_the_same(tmp_path):
    net, x, sigma, labels = unet(), torch.randn(3, 2, 8, 8), torch.tensor([0.01, 1.0, 80.0]), torch.tensor([0, 1, 2])
    save_pretrained(net, tmp_path / "new", shape=[2, 8, 8], recipe={"steps": 1})
    back = from_pretrained(tmp_path / "new")
    assert torch.equal(net(x, sigma, labels), back(x, sigma, labels))
    assert type(back) is UNet and back.sigma_data == 0.7 and not back.training and not any(p.requires_grad for p in back.parameters())
    assert back.notes == {"shape": [2, 8, 8], "recipe": {"steps": 1}}


def test_mlp_round_trip(tmp_path):
    save_pretrained(shake(MLP(3, width=8)), tmp_path)
    assert from_pretrained(str(tmp_path)).config["dim"] == 3


def test_folder_holds_weights_configuration_and_card_alone(tmp_path):
    save_pretrained(unet(), tmp_path, title="A title", quality={"distance": "3.0"})
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "README.md").read_text()
    assert "# A title" in card and "| distance | 3.0 |" in card

@pytest.mark.parametrize("license, line", [(None, None), ("mit", "license: mit"), ("cc-by-nc-4.0", "license: cc-by-nc-4.0")])
def test_a_license_is_claimed_only_where_one_is_named(tmp_path, license, line):
    save_pretrained(unet(), tmp_path, license=license)
    head = (tmp_path / "README.md").read_text().split("---")[1].splitlines()
    assert [text for text in head if "license" in text] == ([line] if line else [])
    assert from_pretrained(tmp_path).notes.get("license") == license


@pytest.mark.parametrize("license", ["", "two words", "mit\nlibrary_name: other", 3.5j])
def test_a_license_is_a_short_name(tmp_path, license):
    with pytest.raises(ValueError, match="license"): save_pretrained(unet(), tmp_path / "new", license=license)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["digits", "mnist", "shapes"])
def test_bundled_cards_keep_their_license(name):
    import consistency_models
    assert "license: mit" in (Path(consistency_models.__file__).parent / "weights" / name / "README.md").read_text()


# Files of others

FOREIGN = {"README.md": [b"# My thesis\n", b"---\nlibrary_name: diffusers\n---\n# Theirs\n", b"# About\n---\nlibrary_name: consistency_models\n---\n", b"", b"\xff\xfe",
                         b"---\nlibrary_name: consistency_models\n---\n# By hand\n"],
           "config.json": [b"{}", b"[1]", b'{"architectures": ["Bert"]}', b"not json", b"\xff"], "model.safetensors": [b"", b"other weights", bytes(100)]}


@pytest.mark.parametrize("name, content", [(name, content) for name, contents in FOREIGN.items() for content in contents])
def test_files_of_others_are_never_replaced(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileExistsError, match=f"{name} was not written by this package"): save_pretrained(unet(), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {name: content}


def test_weights_of_others_are_never_replaced(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileExistsError, match="model.safetensors"): save_pretrained(unet(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for make in (lambda p: p.symlink_to("nowhere"), lambda p: p.mkdir()):
        make(tmp_path / "README.md")
        with pytest.raises(FileExistsError, match="README.md"): save_pretrained(unet(), tmp_path)
        (tmp_path / "README.md").rmdir() if (tmp_path / "README.md").is_dir() else (tmp_path / "README.md").unlink()


def test_files_of_this_package_are_replaced_also_those_of_a_save_that_was_cut_off(tmp_path):
    (tmp_path / "my own.txt").write_text("stays")
    for left in (["README.md", "config.json", "model.safetensors"], ["model.safetensors"], ["config.json", "README.md"], ["config.json", "model.safetensors"]):
        save_pretrained(unet(), tmp_path)
        for path in set(tmp_path.iterdir()) - {tmp_path / name for name in [*left, "my own.txt"]}: path.unlink()
        save_pretrained(mlp := shake(MLP(3, width=8)), tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), from_pretrained(tmp_path).parameters(), strict=True))
    assert (tmp_path / "my own.txt").read_text() == "stays"


def test_of_a_copy_of_bundled_weights_the_card_stays(tmp_path):
    """Their configuration holds no hash of the card, so nobody knows who wrote it"""
    import shutil

    import consistency_models
    shutil.copytree(Path(consistency_models.__file__).parent / "weights" / "digits", tmp_path / "copy")
    with pytest.raises(FileExistsError, match="README.md"): save_pretrained(unet(), tmp_path / "copy")
    (tmp_path / "copy" / "README.md").unlink()
    save_pretrained(unet(), tmp_path / "copy")
    assert from_pretrained(tmp_path / "copy").config["num_classes"] == 3


@pytest.mark.parametrize("change", [lambda b: b + b"\nMy notes.\n", lambda b: b.replace(b"A consistency model", b"My model"),
                                    lambda b: b"---\nlibrary_name: consistency_models\n---\n",
                                    lambda b: b.replace(b"\n", b"\r\n"), lambda b: b""])
def test_a_card_that_somebody_changed_is_never_replaced(tmp_path, change):
    save_pretrained(unet(), tmp_path, description="Grüße\r\n")
    save_pretrained(unet(), tmp_path)                  # unchanged, it is replaced
    card = tmp_path / "README.md"
    card.write_bytes(change(card.read_bytes()))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="README.md was not written by this package, or was changed since"): save_pretrained(MLP(2, 8, 1), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before and from_pretrained(tmp_path).notes == {}


@pytest.mark.parametrize("change, name", [
    (lambda net: torch.nn.utils.parametrizations.spectral_norm(net.out), r"out\.parametrizations\.weight\.0\._u"),
    (lambda net: torch.nn.utils.parametrizations.weight_norm(net.out), r"out\.parametrizations\.weight\.original0"),
    (lambda net: prune.identity(net.out, "weight"), r"out\.weight"),
    (lambda net: net.register_buffer("count", torch.zeros(1)), r"count is of shape \(1,\) in net and missing"),
    (lambda net: setattr(net, "out", torch.nn.Identity()), r"out\.bias is missing in net"),
    (lambda net: setattr(net, "out", torch.nn.Linear(8, 5)), r"out\.bias is of shape \(5,\)")])
def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path, change, name):
    change(net := MLP(2, 8, 1))
    with pytest.raises(ValueError, match=f"{name}.*undo what was added"): save_pretrained(net, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_network_without_its_parametrization_is_saved(tmp_path):
    whole = MLP(2, 8, 1)
    torch.nn.utils.parametrizations.spectral_norm(whole.out)
    torch.nn.utils.parametrize.remove_parametrizations(whole.out, "weight")
    state = torch.random.get_rng_state()
    save_pretrained(whole, tmp_path)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(from_pretrained(tmp_path).out.weight, whole.out.weight)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    save_pretrained(unet(), "~/model")
    assert (tmp_path / "model" / "config.json").is_file() and from_pretrained("~/model").config["num_classes"] == 3


def test_older_versions_of_the_hub_hand_over_more(tmp_path):
    from consistency_models.pretrained import _hub_model
    save_pretrained(unet(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert _hub_model()._from_pretrained(model_id=str(tmp_path), config=config, proxies=None, resume_download=False).net.config["num_classes"] == 3


def test_weights_are_readable_by_others(tmp_path):
    save_pretrained(unet(), tmp_path)
    assert oct((tmp_path / "model.safetensors").stat().st_mode)[-3:] == oct((tmp_path / "config.json").stat().st_mode)[-3:]


@pytest.mark.parametrize("name", ["digits"])
def test_bundled_checkpoints_load_without_a_network(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    net = from_pretrained(name)
    assert name in bundled_checkpoints() and {"title", "shape", "recipe", "quality"} <= set(net.notes)


def test_bundled_digits_are_digits():
    """A classifier trained here on real digits names what was asked for"""
    from consistency_models import load_digits, recognition_rate, train_classifier
    net, judge, labels = from_pretrained("digits"), train_classifier(*load_digits(), steps=300), torch.arange(10).repeat(30)
    x = ConsistencySamplingAndEditing(sigma_data=net.sigma_data)(net, torch.empty(300, 1, 8, 8), [80.0, 0.8], generator=torch.Generator().manual_seed(0), class_labels=labels)
    assert recognition_rate(x, labels, judge) > 0.93


# Refusals

@pytest.mark.parametrize("name", ["nothing", "a/b/c", "/no/such/folder", "../digits/x", "", "~/nofolder", "./nofolder", "../x", "nofolder/", "/x", "a b/c", ".hidden/x"])
def test_unknown_name_is_a_clear_error(name):
    with pytest.raises(ValueError, match="no bundled checkpoint"): from_pretrained(name)


def saved(tmp_path, **changes):
    save_pretrained(unet(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("changes", [{"network": "os.system"}, {"network": None}, {"network": "Linear"}, {"arguments": {"command": "x"}}, {"arguments": None},
                                     {"arguments": {"channels": [8, 32]}}, {"arguments": {"channels": []}}, {"arguments": {"channels": {"a": 1}}},
                                     {"arguments": {"num_classes": -2}}, {"notes": None}, {"notes": [1]}])
def test_foreign_configuration_is_a_clear_error(tmp_path, changes):
    with pytest.raises(ValueError, match=r"config\.json"): from_pretrained(saved(tmp_path, **changes))


@pytest.mark.parametrize("text", [b"[1]", b"null", b'"x"', b"3", b"{", b"", b"\xff\xfe"])
def test_configuration_file_must_hold_a_dictionary(tmp_path, text):
    (saved(tmp_path) / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/?config.json|{tmp_path} has no config.json"): from_pretrained(tmp_path)


def test_configuration_must_be_a_dictionary():
    for config in ({}, {"network": []}, {"network": "MLP", "arguments": 3}):
        with pytest.raises(ValueError): build_network(config)


@pytest.mark.parametrize("change", [lambda b: b[:100], lambda b: b"", lambda b: os.urandom(500), lambda b: pickle.dumps(print)])
def test_damaged_weights_are_a_clear_error(tmp_path, change):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged"): from_pretrained(tmp_path)


def test_missing_parts_are_a_clear_error(tmp_path):
    (saved(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors is missing"): from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json"): from_pretrained(tmp_path)


def test_missing_and_extra_weights_are_a_clear_error(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != "out.bias"}, path)
    with pytest.raises(ValueError, match="out.bias"): from_pretrained(tmp_path)


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(TypeError, match="UNet or MLP"): save_pretrained(torch.nn.Linear(2, 2), tmp_path)


def test_push_to_hub_uploads_the_folder(tmp_path, monkeypatch):
    """The upload itself needs the Hub; what would be uploaded is looked at"""
    import huggingface_hub.hub_mixin as mixin
    seen = {}
    class Hub:
        def __init__(self, **kwargs): pass
        def create_repo(self, repo_id, **kwargs): return type("Repo", (), {"repo_id": repo_id})
        def upload_folder(self, repo_id, folder_path, **kwargs):
            seen.update({p.name: p.read_bytes() for p in __import__("pathlib").Path(folder_path).iterdir()})
            return repo_id
    monkeypatch.setattr(mixin, "HfApi", Hub)
    assert push_to_hub(unet(), "me/model", title="Mine", license="apache-2.0") == "me/model"
    assert set(seen) == {"README.md", "config.json", "model.safetensors"} and b'from_pretrained("me/model")' in seen["README.md"] and b"license: apache-2.0" in seen["README.md"]


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    save_pretrained(unet(), tmp_path, title="First")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for notes in ({"quality": {"distance": torch.ones(1)}}, {"recipe": "by hand"}):
        with pytest.raises(TypeError): save_pretrained(unet(), tmp_path, **notes)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_the_card_is_that_of_the_model_saved_last(tmp_path):
    for title in ("First", "Second"): save_pretrained(unet(), tmp_path, title=title)
    card = (tmp_path / "README.md").read_text()
    assert "Second" in card and "First" not in card


# Networks of diffusers

@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small random consistency model in the layout in which diffusers publishes them"""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, num_class_embeds=5,
        resnet_time_scale_shift="scale_shift", down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, rho=7.0, clip_denoised=True)
    folder = tmp_path_factory.mktemp("pipeline")
    ConsistencyModelPipeline(shake(network), scheduler).save_pretrained(folder)
    loaded = ConsistencyModelPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return folder, loaded


def test_one_step_equals_diffusers_pipeline(pipeline):
    folder, theirs = pipeline
    noise, labels = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    expected = theirs(batch_size=2, class_labels=labels, num_inference_steps=1, latents=noise.clone(), output_type="pt").images * 2 - 1
    ours = ConsistencySamplingAndEditing()(
        from_diffusers(folder), 80 * noise, [80.0], start_from_y=True, add_initial_noise=False, clip_denoised=True, class_labels=labels)
    assert expected.std() > 0.1 and torch.allclose(ours, expected, atol=1e-5)


def test_diffusers_network_in_precondition_is_a_network_like_ours(pipeline):
    net = from_diffusers(pipeline[0])
    assert isinstance(net, Precondition) and net.sigma_data == 0.5 and not net.training
    x = torch.randn(2, 3, 16, 16)
    assert net(x, torch.tensor([0.1, 80.0]), class_labels=torch.tensor([0, 4])).shape == x.shape
