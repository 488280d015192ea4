"""Metrics against oracles: torchmetrics, closed forms, sets whose answer is known."""
import warnings

import pytest
import torch
from conftest import gaussian, seeded
from torch import nn

from consistency_models import (
    MLP,
    Classifier,
    as_network,
    consistency_error,
    exact_consistency_function,
    feature_statistics,
    frechet_distance,
    inception_features,
    kernel_distance,
    load_digits,
    metrics,
    precision_recall,
    recognition_rate,
    train_classifier,
    two_moons,
)


def flat(x): return x.flatten(1)


class Plain(nn.Module):
    """Features in the shape torchmetrics expects"""
    num_features = 12
    def forward(self, x): return x.flatten(1)


def test_frechet_distance_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    a, b = gaussian(300, 3, 2, 2), 1.3 * gaussian(200, 3, 2, 2, seed=1) + 0.2
    metric = FrechetInceptionDistance(feature=Plain()).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(a, b, flat) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_frechet_distance_of_gaussians():
    a, b = gaussian(40_000, 3), 2 * gaussian(40_000, 3, seed=1) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet_distance(a, b, flat) == pytest.approx(1 + 3 * (1 - 2) ** 2, rel=0.03)


def test_distance_of_a_set_to_itself_is_zero():
    x = gaussian(500, 6)
    assert abs(frechet_distance(x, x, flat)) < 1e-8 and abs(frechet_distance(x, x, flat, batch_size=7)) < 1e-8


def test_statistics_are_kept_and_read(tmp_path):
    a, b, path = gaussian(200, 5), gaussian(200, 5, seed=1), tmp_path / "new" / "real.safetensors"
    first = feature_statistics(a, flat, path)
    def never(x): raise AssertionError("the file was not read")
    again = feature_statistics(a, never, path)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert frechet_distance(again, b, flat) == pytest.approx(frechet_distance(a, b, flat), abs=1e-9)


@pytest.mark.parametrize("content", [b"", b"no statistics", bytes(100)])
def test_damaged_statistics_are_a_clear_error(tmp_path, content):
    (tmp_path / "real.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"): feature_statistics(gaussian(20, 5), flat, tmp_path / "real.safetensors")


def test_statistics_of_other_things_are_a_clear_error(tmp_path):
    from safetensors.torch import save_file
    save_file({"weight": torch.ones(2)}, tmp_path / "real.safetensors")
    with pytest.raises(ValueError, match="weight"): feature_statistics(gaussian(20, 5), flat, tmp_path / "real.safetensors")


def test_statistics_of_one_sample_have_no_covariance():
    with pytest.raises(ValueError, match="two samples"): frechet_distance(feature_statistics(gaussian(1, 5), flat), gaussian(20, 5), flat)


def test_small_samples_warn():
    with pytest.warns(UserWarning, match="20 samples with 12 features"): frechet_distance(gaussian(20, 12), gaussian(20, 12, seed=1), flat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(gaussian(100, 12), gaussian(100, 12, seed=1), flat)


def test_kernel_distance_is_zero_on_average_and_grows():
    values = torch.tensor([kernel_distance(gaussian(60, 4, seed=2 * s), gaussian(60, 4, seed=2 * s + 1), flat) for s in range(40)])
    assert values.mean().abs() < 3 * values.std() / 40**0.5 and values.min() < 0
    assert kernel_distance(gaussian(60, 4), gaussian(60, 4, seed=1) + 1, flat) > values.max()


@pytest.mark.parametrize("fake, precision, recall", [
    (lambda x: x.clone(), 1.0, 1.0), (lambda x: x + 100, 0.0, 0.0), (lambda x: x[x[:, 0] > 1] + 1e-4, 1.0, None), (lambda x: 6 * x, None, 1.0)])
def test_precision_and_recall_of_known_sets(fake, precision, recall):
    real = gaussian(400, 2)
    p, r = precision_recall(real, fake(real), flat)
    assert precision is None or p == pytest.approx(precision, abs=0.02)
    assert recall is None or r == pytest.approx(recall, abs=0.1)
    if precision == 1.0 and recall is None: assert r < 0.35
    if recall == 1.0 and precision is None: assert p < 0.4


def test_perfect_model_has_no_consistency_error():
    data = two_moons(100, generator=seeded())
    perfect = as_network(lambda x, sigma: exact_consistency_function(x, sigma, data))
    assert max(consistency_error(perfect, data, [0.05, 1.0, 20.0], 20, generator=seeded())) < 1e-4


def test_consistency_error_of_a_known_fault():
    """A model that is wrong by 0.1 in each value"""
    data = two_moons(100, generator=seeded())
    off = as_network(lambda x, sigma: exact_consistency_function(x, sigma, data) + 0.1)
    assert consistency_error(off, data, [1.0, 20.0], 20, generator=seeded()) == pytest.approx([0.1, 0.1], abs=1e-3)


def test_consistency_error_repeats_with_its_generator():
    data = two_moons(100, generator=seeded())
    def model(x, sigma): return torch.zeros_like(x)
    assert consistency_error(model, data, [1.0], generator=seeded(1)) == consistency_error(model, data, [1.0], generator=seeded(1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 5, 9), (1, 4, 4)])
def test_classifier_takes_any_size(shape):
    net = Classifier(shape, 7)
    x = torch.randn(3, *shape)
    assert net(x).shape == (3, 7) and net.features(x).shape == (3, 64)


def test_kernel_distance_of_sets_of_different_sizes():
    """The estimator of Bińkowski et al. (2018) pair by pair, and zero on average for one distribution."""
    a, b = gaussian(5, 4), gaussian(9, 4, seed=1)
    k = lambda x, y: (x @ y / 4 + 1).item() ** 3
    mean = lambda pairs: sum(pairs) / len(pairs)
    within = [mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    expected = sum(within) - 2 * mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b, flat) == pytest.approx(expected, rel=1e-4)
    values = torch.tensor([kernel_distance(gaussian(30, 4, seed=2 * s), gaussian(90, 4, seed=2 * s + 1), flat) for s in range(40)])
    assert values.mean().abs() < 3 * values.std() / 40**0.5


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, precision_recall])
@pytest.mark.parametrize("real, fake, error", [
    (torch.ones(1, 3), torch.ones(5, 3), ValueError), (torch.ones(5, 3), torch.ones(5, 4), ValueError), (torch.ones(5, 3), torch.ones(5, 3).int(), TypeError),
    (torch.ones(5, 3), [1, 2], TypeError), (torch.ones(5), torch.ones(5), ValueError)])
def test_bad_sets_are_clear_errors(metric, real, fake, error):
    with pytest.raises(error): metric(real, fake, flat)


def test_bad_features_and_neighbours_are_clear_errors():
    with pytest.raises(ValueError, match="features"): frechet_distance(gaussian(9, 3), gaussian(9, 3), lambda x: x.sum())
    with pytest.raises(ValueError, match="more than 9"): precision_recall(gaussian(9, 3), gaussian(9, 3), flat, 9)
    with pytest.raises(ValueError, match="samples"): consistency_error(lambda x, s: x, gaussian(9, 3), [1.0], 0)


DISTANCES = pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, precision_recall, lambda a, b, f: feature_statistics(a, f)])


@DISTANCES
@pytest.mark.parametrize("features, error", [
    (lambda x: x, ValueError), (lambda x: x[:, 0, 0, 0], ValueError), (lambda x: x.flatten(1)[:3], ValueError), (lambda x: x.flatten(1).mean(0), ValueError),
    (lambda x: x.sum(), ValueError),
    (lambda x: x.flatten(1)[:, :0], ValueError), (lambda x: x.flatten(1).repeat(2, 1), ValueError), (lambda x: x.flatten(1).tolist(), TypeError), (lambda x: None, TypeError),
    (lambda x: x.flatten(1) / 0, ValueError), ("flat", TypeError), (None, TypeError)])
def test_features_that_are_no_finite_rows_are_refused(metric, features, error):
    """Of images kept as images, precision and recall were (0.73, 0.99) where (0, 1) was right"""
    with pytest.raises(error, match="features must"): metric(gaussian(40, 1, 2, 2), gaussian(40, 1, 2, 2, seed=1), features)


def test_features_must_be_equally_many_in_each_batch():
    with pytest.raises(ValueError, match="features must"): kernel_distance(gaussian(9, 3), gaussian(9, 3), lambda x: x[:, :len(x)], batch_size=7)


@DISTANCES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_samples_that_are_not_finite_are_refused(metric, value):
    good, bad = gaussian(40, 3), gaussian(40, 3)
    bad[17, 1] = value
    with pytest.raises(ValueError, match="must be finite, but number 17 of 40"): metric(bad, good, flat)


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, precision_recall])
def test_generated_samples_that_are_not_finite_are_refused(metric):
    with pytest.raises(ValueError, match="fake must be finite, but number 0"): metric(gaussian(40, 3), gaussian(40, 3) * torch.nan, flat)


@pytest.mark.parametrize("change, match", [
    (lambda s: s | {"sum": s["sum"] * torch.nan}, "finite"), (lambda s: s | {"outer": s["outer"] + torch.inf}, "finite"), (lambda s: s | {"outer": s["outer"][:2]}, "shapes"),
    (lambda s: s | {"sum": s["sum"][None]}, "shapes"), (lambda s: s | {"more": s["sum"]}, "dictionary of"), (lambda s: {}, "dictionary of")])
def test_statistics_that_are_none_are_refused(change, match):
    with pytest.raises(ValueError, match=match): frechet_distance(change(feature_statistics(gaussian(40, 3), flat)), gaussian(40, 3), flat)


def test_statistics_of_other_samples_are_not_taken_for_these(tmp_path):
    a, path = gaussian(40, 3), tmp_path / "real.safetensors"
    feature_statistics(a, flat, path)
    before = path.read_bytes()
    for other in (gaussian(40, 3, seed=1), gaussian(41, 3), a.double(), a.reshape(40, 1, 3)):
        with pytest.raises(ValueError, match="other samples"): feature_statistics(other, flat, path)
    assert path.read_bytes() == before and feature_statistics(a.clone(), flat, path)["number"] == 40
    with pytest.raises(ValueError, match="is a folder"): feature_statistics(a, flat, tmp_path)


def test_statistics_are_kept_in_the_home_folder_of_a_tilde(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    feature_statistics(gaussian(40, 3), flat, "~/real.safetensors")
    assert (tmp_path / "real.safetensors").is_file()


@pytest.mark.parametrize("judge", [lambda images, labels: recognition_rate(images, labels, lambda x: x), lambda images, labels: train_classifier(images[:, None, None], labels, 1)])
@pytest.mark.parametrize("images, labels, error, match", [
    (torch.eye(4) * torch.nan, torch.arange(4), ValueError, "images must be finite"), (torch.eye(4).int(), torch.arange(4), TypeError, "images"),
    (torch.eye(4), torch.arange(4.), TypeError, "labels"), (torch.eye(4), [0, 1, 2, 3], TypeError, "labels"), (torch.eye(4), torch.arange(4)[:, None], ValueError, "labels"),
    (torch.eye(4), torch.arange(1), ValueError, "labels"), (torch.eye(4), torch.arange(4) - 1, ValueError, "labels"), (torch.eye(4)[:0], torch.arange(0), ValueError, "images")])
def test_images_and_classes_that_do_not_fit_are_refused(judge, images, labels, error, match):
    with pytest.raises(error, match=match): judge(images, labels)


@pytest.mark.parametrize("answer", [lambda x: x * torch.nan, lambda x: x[:, 0], lambda x: x[:2]])
def test_a_classifier_that_gives_no_answers_is_refused(answer):
    with pytest.raises(ValueError, match="classifier"): recognition_rate(torch.eye(4), torch.arange(4), answer)


def test_consistency_error_is_of_finite_data_and_answers():
    data = two_moons(20)
    with pytest.raises(ValueError, match="answers at noise level 2 must be finite"): consistency_error(lambda x, sigma: x * torch.nan, data, [2.0])
    with pytest.raises(ValueError, match="data must be finite, but number 3"): consistency_error(lambda x, sigma: x, data.index_fill(0, torch.tensor(3), torch.inf), [2.0])
    with pytest.raises(ValueError, match="data must hold"): consistency_error(lambda x, sigma: x, data[:0], [2.0])


def test_inception_says_what_is_missing():
    pytest.importorskip("torchmetrics")
    try: import torch_fidelity  # noqa: F401, I001
    except ImportError:
        with pytest.raises(ImportError, match="torch-fidelity"): inception_features()
    else: pytest.skip("torch-fidelity is installed; its weights would be downloaded")


def test_a_classifier_that_died_is_trained_again(monkeypatch):
    images, labels = load_digits()
    alive, rates = train_classifier(images, labels, 60), []
    class Dead(nn.Module):
        def forward(self, x): return torch.eye(10)[0].expand(len(x), 10)
    def fit(images, labels, steps, rate):
        rates.append(rate)
        return alive if len(rates) == 3 else Dead()
    monkeypatch.setattr(metrics, "_fit_classifier", fit)
    assert train_classifier(images, labels) is alive and rates == [2e-3, 1e-3, 5e-4]


def test_a_classifier_that_stays_dead_is_not_trusted_in_silence(monkeypatch):
    """Also where the images are sorted by class, so that the first 2,000 are all alike"""
    class Dead(nn.Module):
        def forward(self, x): return torch.eye(3)[0].expand(len(x), 3)
    monkeypatch.setattr(metrics, "_fit_classifier", lambda *_: Dead())
    with pytest.warns(UserWarning, match="do not let it judge"): train_classifier(torch.zeros(9000, 1, 2, 2), torch.arange(3).repeat_interleave(3000))


def test_kernel_distance_in_parts_is_that_of_the_whole():
    from torchmetrics.image.kid import poly_kernel
    a, b = gaussian(1300, 3).double(), gaussian(2100, 3, seed=1).double()
    within = lambda u: (poly_kernel(u, u).sum() - poly_kernel(u, u).trace()) / (len(u) * (len(u) - 1))
    assert kernel_distance(a, b, flat) == pytest.approx((within(a) + within(b) - 2 * poly_kernel(a, b).mean()).item(), abs=1e-10)


def test_recognition_is_counted_over_all_images():
    class First(nn.Module):
        def forward(self, x): return torch.eye(2)[0].expand(len(x), 2)
    assert recognition_rate(torch.zeros(5000, 1, 2, 2), torch.arange(5000) % 2, First()) == 0.5


def test_consistency_error_takes_sigma_data_from_the_model():
    data, net = gaussian(20, 2), MLP(2, 16, 1, sigma_data=0.7)
    errors = [consistency_error(net, data, [1.0], generator=seeded(), **given) for given in ({}, {"sigma_data": 0.7})]
    assert errors[0] == errors[1]
    with pytest.warns(UserWarning, match="built for 0.7"): consistency_error(net, data, [1.0], sigma_data=0.5)


def test_consistency_error_of_plain_numbers_and_of_half_precision():
    data = gaussian(30)
    off = as_network(lambda x, sigma: exact_consistency_function(x, sigma, data) + 0.1)
    assert consistency_error(off, data, [1.0, 20.0], 20, generator=seeded()) == pytest.approx([0.1, 0.1], abs=1e-3)
    far = as_network(lambda x, sigma: exact_consistency_function(x, sigma, data.half()) + 1000)
    assert consistency_error(far, data.half(), [1.0], 20, generator=seeded()) == pytest.approx([1000], rel=1e-2)


@pytest.mark.parametrize("images", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("labels", [torch.int32, torch.int16, torch.uint8])
def test_a_classifier_learns_from_images_and_classes_of_every_type(images, labels):
    x, y = load_digits()
    x, y = x.to(images), y.to(labels)
    judge = train_classifier(x, y, 40)
    assert recognition_rate(x, y, judge) > 0.8 and judge.features(x[:3]).shape == (3, 64) and judge.head.weight.dtype == torch.float32


@pytest.mark.parametrize("change", [lambda x: x[:, 0], lambda x: x.flatten(1), lambda x: x[:, :, None], lambda x: x[:, :0], lambda x: x[..., :0]])
def test_a_classifier_is_of_images(change):
    images, labels = load_digits()
    with pytest.raises(ValueError, match=r"images must have shape \(n, channels, height, width\), got \(1797,"): train_classifier(change(images), labels, 1)


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, precision_recall])
@pytest.mark.parametrize("grown", ["both", "real", "fake"])
def test_features_too_large_to_compute_with_are_refused(metric, grown):
    a, b = gaussian(40, 3), gaussian(40, 3, seed=1)
    def features(x): return x.double() * (1e200 if grown == "both" or (x is a) == (grown == "real") else 1)
    with pytest.raises(ValueError, match=r"features must be small enough to compute with in float64, but they reach .*e\+200"):
        metric(a, b, lambda x: features(a if torch.equal(x, a) else b))


def test_statistics_too_large_to_compute_with_are_refused(tmp_path):
    with pytest.raises(ValueError, match="features must be small enough"): feature_statistics(gaussian(40, 3), lambda x: x.double() * 1e200, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    large = feature_statistics(gaussian(40, 3), lambda x: x.double() * 1e100)
    with pytest.raises(ValueError, match=r"features must be small enough .*e\+(99|100)"): frechet_distance(large, gaussian(40, 3, seed=1), lambda x: x.double() * 1e100)


def test_reading_statistics_looks_at_some_samples_alone_and_at_none_without_need(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file
    x, path, hashed = gaussian(50_000, 8), tmp_path / "real.safetensors", []
    feature_statistics(x, flat, path)
    real = metrics.sha256
    monkeypatch.setattr(metrics, "sha256", lambda content: hashed.append(len(content)) or real(content))
    feature_statistics(x, flat, path)
    assert len(hashed) == 1 and hashed[0] < 200 * 8 * 4
    with pytest.raises(ValueError, match="other samples"): feature_statistics(x + 1, flat, path)
    save_file(load_file(path), path)                # a file without a note on its samples
    hashed.clear()
    assert feature_statistics(x, flat, path)["number"] == 50_000 and not hashed
