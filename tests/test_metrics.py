"""Metrics: formulas against torchmetrics and sets whose answer is known; what judges is sound; no number from bad input."""
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from conftest import gaussian, seeded
from torch import nn

from consistency_models import metrics
from consistency_models.data import load_avatars, load_digits, two_moons
from consistency_models.metrics import (
    Classifier,
    consistency_error,
    feature_statistics,
    frechet_distance,
    inception_features,
    kernel_distance,
    measure,
    nearest,
    precision_recall,
    print_table,
    real_pairs,
    recognition_rate,
    train_classifier,
)
from consistency_models.networks import MLP
from consistency_models.parameterization import ConsistencyFunction, consistency_function
from consistency_models.paths import exact_consistency_function

SETS = (frechet_distance, kernel_distance, precision_recall)


def flat(x): return x.flatten(1)


def each(calls):
    """A case for each, named by its function"""
    return pytest.mark.parametrize("metric", calls, ids=lambda f: f.__name__)


class Constant(nn.Module):
    """A classifier that names the same class whatever it sees"""
    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x): return torch.eye(self.classes)[0].expand(len(x), self.classes)


# Equals the paper

@pytest.mark.slow
def test_frechet_distance_equals_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    class Plain(nn.Module):
        num_features = 12
        def forward(self, x): return x.flatten(1)
    a, b = gaussian(300, 3, 2, 2), 1.3 * gaussian(200, 3, 2, 2, seed=1) + 0.2
    metric = fid.FrechetInceptionDistance(feature=Plain()).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(a, b, flat) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_frechet_distance_is_eq_6_of_heusel_et_al():
    """With tr sqrt(C1 C2) = tr sqrt(C1^(1/2) C2 C1^(1/2)), which is symmetric; sets of different sizes"""
    a, b = gaussian(40, 5), gaussian(75, 5, seed=1) @ gaussian(5, 5, seed=2) + 1
    (m1, c1), (m2, c2) = ((x.double().mean(0), x.double().T.cov()) for x in (a, b))
    def root(c):
        values, vectors = torch.linalg.eigh(c)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    expected = (m1 - m2).square().sum() + (c1 + c2 - 2 * root(root(c1) @ c2 @ root(c1))).trace()
    assert frechet_distance(a, b, flat) == pytest.approx(expected.item(), rel=1e-5)
    assert frechet_distance(b, a, flat) == pytest.approx(expected.item(), rel=1e-5)


def test_frechet_distance_of_a_scaled_and_shifted_set_is_known():
    a = gaussian(60, 4, dtype=torch.float64)
    expected = (-0.5 * a.mean(0) - 1).square().sum() + 0.25 * a.T.cov().trace()
    assert frechet_distance(a, 0.5 * a - 1, flat) == pytest.approx(expected.item(), rel=1e-6)
    assert abs(frechet_distance(a, a.flip(0), flat)) < 1e-6


def test_kernel_distance_is_the_unbiased_estimator_of_binkowski_et_al():
    """Pair by pair, for sets of different sizes; and zero on average for one distribution"""
    a, b = gaussian(5, 4), gaussian(9, 4, seed=1)
    k = lambda x, y: (x @ y / 4 + 1).item() ** 3
    mean = lambda pairs: sum(pairs) / len(pairs)
    within = [mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    expected = sum(within) - 2 * mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b, flat) == pytest.approx(expected, rel=1e-4)
    same = torch.tensor([kernel_distance(gaussian(30, 4, seed=2 * s), gaussian(90, 4, seed=2 * s + 1), flat) for s in range(40)])
    assert same.mean().abs() < 3 * same.std() / 40**0.5 and same.min() < 0
    assert kernel_distance(a, b + 3, flat) > same.max()


def test_kernel_distance_in_parts_equals_torchmetrics_on_the_whole():
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = gaussian(1300, 3).double(), gaussian(2100, 3, seed=1).double()
    k = kid.poly_kernel
    within = lambda u: (k(u, u).sum() - k(u, u).trace()) / (len(u) * (len(u) - 1))
    assert kernel_distance(a, b, flat) == pytest.approx((within(a) + within(b) - 2 * k(a, b).mean()).item(), abs=1e-10)


@pytest.mark.parametrize("fake, precision, recall", [
    (lambda x: x.clone(), (1, 1), (1, 1)), (lambda x: x + 100, (0, 0), (0, 0)),
    (lambda x: x[x[:, 0] > 1] + 1e-4, (0.98, 1), (0, 0.35)), (lambda x: 6 * x, (0, 0.4), (0.9, 1))],
    ids=["copies", "far away", "a part", "too wide"])
def test_precision_and_recall_of_known_sets(fake, precision, recall):
    real = gaussian(400, 2)
    p, r = precision_recall(real, fake(real), flat)
    assert precision[0] <= p <= precision[1] and recall[0] <= r <= recall[1]


def test_precision_and_recall_count_the_balls_that_reach_to_the_neighbor():
    """Kynkäänniemi et al. (2019), with balls around 0, 1 and 3 that reach to the first or second neighbor"""
    real, fake = torch.tensor([[0.], [1.], [3.]]), torch.tensor([[-0.5], [-1.5], [5.5], [9.]])
    assert precision_recall(real, fake, flat, neighbors=1)[0] == 0.25       # radii 1, 1, 2
    assert precision_recall(real, fake, flat, neighbors=2)[0] == 0.75       # radii 3, 2, 3


def test_nearest_neighbors_are_exact_and_copies_are_found():
    x = load_avatars(False)[0][:300]
    d = torch.cdist(flat(x).double(), flat(x).double(), compute_mode="donot_use_mm_for_euclid_dist")
    places, distances = nearest(x, x)
    torch.testing.assert_close(distances, d.fill_diagonal_(torch.inf).min(1).values.float())
    assert (places == d.argmin(1)).all()
    places, distances = nearest(x[:50], x)
    assert (distances == 0).all() and (places == torch.arange(50)).all()


def test_real_images_are_compared_in_equal_numbers():
    """Two halves that share nothing where there is one set; else all, and as many of those for training"""
    images, training = gaussian(30, 6), gaussian(100, 6, seed=1)
    for a, b, where in real_pairs(images, images.clone(), 3):
        assert len(a) == len(b) == 15 and torch.equal(images[where], b)
        assert len(torch.cat([a, b]).unique(dim=0)) == 30
    for a, b, where in real_pairs(images, training, 3):
        assert torch.equal(images[where], a) and len(a) == len(a.unique(dim=0)) == len(b.unique(dim=0)) == 30
        assert (nearest(b, training)[1] == 0).all()
    assert [len(t) for t in real_pairs(training, images)[0]] == [30, 30, 30]


def test_a_perfect_model_has_no_consistency_error_and_a_known_fault_has_its_size():
    """For points, for data that are plain numbers, and in half precision"""
    for data, shift, tolerance in ((two_moons(100, generator=seeded()), 0.1, 1e-3), (gaussian(30), 0.1, 1e-3), (gaussian(30).half(), 1000, 10)):
        perfect = ConsistencyFunction(lambda x, sigma, data=data: exact_consistency_function(x, sigma, data))
        off = ConsistencyFunction(lambda x, sigma, data=data, shift=shift: exact_consistency_function(x, sigma, data) + shift)
        assert max(consistency_error(perfect, data, [0.05, 1., 20.], 20, seeded())) < 1e-3
        assert consistency_error(off, data, [1., 20.], 20, seeded()) == pytest.approx([shift, shift], abs=tolerance)


# Keeps its promises

def test_the_distance_is_measured_in_the_features():
    a, b = gaussian(40, 3), gaussian(40, 3, seed=1)
    b[:, :2] = a[:, :2]
    assert abs(frechet_distance(a, b, lambda x: x[:, :2])) < 1e-6 < frechet_distance(a, b, flat)


@each([frechet_distance, kernel_distance])
def test_distances_do_not_depend_on_the_batch_size(metric):
    a, b = gaussian(40, 3), gaussian(40, 3, seed=1)
    assert metric(a, b, flat, 7) == pytest.approx(metric(a, b, flat), rel=1e-6)


def test_statistics_are_kept_and_read(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    a, b = gaussian(200, 5), gaussian(200, 5, seed=1)
    first = feature_statistics(a, flat, "~/new/real.safetensors")
    def never(x): raise AssertionError("the file was not read")
    again = feature_statistics(a, never, tmp_path / "new" / "real.safetensors")
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert frechet_distance(again, b, flat) == pytest.approx(frechet_distance(a, b, flat), abs=1e-9)


def test_reading_statistics_looks_at_some_samples_alone_and_at_none_without_need(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file
    x, path, hashed = gaussian(50_000, 8), tmp_path / "real.safetensors", []
    feature_statistics(x, flat, path)
    real = metrics.sha256
    monkeypatch.setattr(metrics, "sha256", lambda content: hashed.append(len(content)) or real(content))
    feature_statistics(x, flat, path)
    assert len(hashed) == 1 and hashed[0] < 200 * 8 * 4
    save_file(load_file(path), path)                # a file without a note on its samples
    hashed.clear()
    assert feature_statistics(x, flat, path)["number"] == 50_000 and not hashed


def test_few_samples_warn():
    with pytest.warns(UserWarning, match="20 samples with 12 features"): frechet_distance(gaussian(20, 12), gaussian(20, 12, seed=1), flat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(gaussian(100, 12), gaussian(100, 12, seed=1), flat)


def test_a_classifier_takes_any_size_and_its_answers_come_from_its_features():
    for shape in ((1, 8, 8), (3, 32, 32), (3, 5, 9), (3, 4, 256)):
        net, x = Classifier(shape, 7).eval(), torch.randn(3, *shape)
        assert net.features(x).shape == (3, 64)
        torch.testing.assert_close(net(x), net.head(net.features(x)))


def test_a_classifier_sees_large_images_smaller():
    torch.manual_seed(0)
    large = Classifier((3, 64, 64), 5).eval()
    torch.manual_seed(0)
    small, x = Classifier((3, 32, 32), 5).eval(), torch.randn(3, 3, 64, 64)
    assert torch.equal(large(x), small(torch.nn.functional.avg_pool2d(x, 2)))
    assert Classifier((1, 48, 130), 2)(torch.randn(2, 1, 48, 130)).shape == (2, 2)


def test_training_a_classifier_is_repeatable_and_leaves_the_random_state():
    images, labels = (x[:200] for x in load_digits())
    before = torch.get_rng_state()
    a, b = (train_classifier(images, labels, steps=12) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(a(images), b(images))
    assert not a.training and not any(p.requires_grad for p in a.parameters()) and recognition_rate(images, labels, a) > 0.6


@pytest.mark.parametrize("images, labels", [(torch.float64, torch.int32), (torch.bfloat16, torch.uint8)], ids=str)
def test_a_classifier_learns_from_images_and_classes_of_every_type(images, labels):
    x, y = load_digits()
    x, y = x.to(images), y.to(labels)
    judge = train_classifier(x, y, 40)
    assert recognition_rate(x, y, judge) > 0.8 and judge.head.weight.dtype == torch.float32


def test_a_classifier_that_died_is_trained_again(monkeypatch):
    images, labels = load_digits()
    alive, rates = train_classifier(images, labels, 60), []
    def fit(images, labels, steps, rate):
        rates.append(rate)
        return alive if len(rates) == 3 else Constant(10)
    monkeypatch.setattr(metrics, "_fit_classifier", fit)
    assert train_classifier(images, labels) is alive and rates == [2e-3, 1e-3, 5e-4]


def test_a_classifier_that_stays_dead_is_not_trusted_in_silence(monkeypatch):
    """Also where the images are sorted by class, so that the first 2,000 are all alike"""
    monkeypatch.setattr(metrics, "_fit_classifier", lambda *_: Constant(3))
    with pytest.warns(UserWarning, match="do not let it judge"): train_classifier(torch.zeros(9000, 1, 2, 2), torch.arange(3).repeat_interleave(3000))


def test_recognition_is_counted_over_all_images():
    assert recognition_rate(torch.zeros(5000, 1, 2, 2), torch.arange(5000) % 2, Constant(2)) == 0.5
    assert recognition_rate(torch.eye(10)[:4], torch.tensor([0, 1, 2, 9]), lambda x: x) == 0.75


def test_consistency_error_takes_a_network_as_it_takes_its_consistency_function():
    data, net = gaussian(20, 2), MLP(2, 16, 1, num_classes=3, sigma_data=0.7)
    labels = torch.arange(16) % 3
    own = consistency_error(net, data, [1.], 16, seeded(), class_labels=labels)
    assert own == consistency_error(consistency_function(net, 0.7, class_labels=labels), data, [1.], 16, seeded())
    assert own != consistency_error(lambda x, sigma: net(x, sigma, labels), data, [1.], 16, seeded())      # which says nothing of 0.7


@pytest.mark.slow
def test_a_model_that_recites_is_told_by_its_copies_alone():
    images, labels = load_digits()
    judge, drawn = train_classifier(images, labels, 200), []
    def draw(sigmas, seed):
        drawn.append((sigmas, seed))
        return images + 0.05 * torch.randn(images.shape, generator=seeded(seed))
    rows = measure(draw, images, labels, images, judge, seeds=2, second=1.5)
    assert drawn == [((80.,), 0), ((80.,), 1), ((80., 1.5), 0), ((80., 1.5), 1)]
    halves, one, two, recognized, again, closer = rows.values()
    assert all(0.8 * h < o < 1.2 * h for h, o in zip(2 * halves, one + two))
    assert min(recognized + again) > 95 and closer == [100, 100]
    with pytest.raises(TypeError, match="labels need a classifier"): measure(draw, images, labels, images, judge.features)
    alone = measure(draw, images, None, images, judge.features, seeds=2)
    assert list(alone.values()) == [halves, one, two, closer]           # without classes nothing is recognized


@pytest.mark.slow
def test_a_classifier_of_several_attributes_reads_each():
    """Background, skin and glasses of the avatars at once; what is not among the answers is chance"""
    images, _, attributes = load_avatars(False)
    shown = attributes[:, [0, 9, 10]].clone()
    shown[:, 2] = (shown[:, 2] > 0).long()
    judge = train_classifier(images[:3000], shown[:3000], 300)
    assert judge.sizes == (6, 8, 2) and judge.features(images[:5]).shape == (5, 256)
    assert recognition_rate(images[3000:], shown[3000:], judge) > 0.95
    assert recognition_rate(images[3000:], shown[3000:].roll(1, 0), judge) < 0.5
    with pytest.raises(ValueError, match="names 3 attributes, labels 1"): recognition_rate(images[:9], shown[:9, 0], judge)


def test_the_table_shows_mean_and_range(capsys):
    print_table({"distance": [1., 2., 6.]})
    assert capsys.readouterr().out.split() == ["distance", "3.0", "(from", "1.0", "to", "6.0", "over", "3)"]


# Refuses

@each(SETS)
def test_sets_that_cannot_be_compared(metric):
    good = torch.ones(5, 3)
    for real, fake, error, match in (
        (torch.ones(1, 3), good, ValueError, "real must hold at least 2"), (good, torch.ones(0, 3), ValueError, "fake must"),
        (good, torch.ones(5, 4), ValueError, "one shape"), (good, good.int(), TypeError, "fake must be a floating"), (good, [1, 2], TypeError, "fake must be a torch tensor")):
        with pytest.raises(error, match=match): metric(real, fake, flat)


@each([*SETS, feature_statistics])
def test_features_that_are_no_finite_rows(metric):
    """Of images kept as images, precision and recall were (0.73, 0.99) where (0, 1) was right"""
    sets = [gaussian(40, 1, 2, 2, seed=s) for s in range(2)][:1 if metric is feature_statistics else 2]
    for features in (lambda x: x, lambda x: x[:, 0, 0, 0], lambda x: x.flatten(1)[:3], lambda x: x.sum(), lambda x: x.flatten(1)[:, :0], lambda x: x.flatten(1) / 0):
        with pytest.raises(ValueError, match="features must"): metric(*sets, features)
    for features in (lambda x: x.flatten(1).tolist(), lambda x: None, "flat"):
        with pytest.raises(TypeError, match="features must"): metric(*sets, features)


def test_features_that_grow_from_batch_to_batch():
    with pytest.raises(ValueError, match="features must"): kernel_distance(gaussian(9, 3), gaussian(9, 3), lambda x: x[:, :len(x)], batch_size=7)


@each(SETS)
def test_samples_that_are_not_finite(metric):
    good, bad = gaussian(40, 3), gaussian(40, 3)
    for bad[17, 1] in (torch.nan, -torch.inf):
        with pytest.raises(ValueError, match="real must be finite, but number 17 of 40"): metric(bad, good, flat)
        with pytest.raises(ValueError, match="fake must be finite, but number 17 of 40"): metric(good, bad, flat)


@each(SETS)
def test_features_too_large_to_compute_with(metric):
    a, b = gaussian(40, 3), gaussian(40, 3, seed=1)
    for huge in (lambda x: True, lambda x: torch.equal(x, a), lambda x: torch.equal(x, b)):
        with pytest.raises(ValueError, match=r"features must be finite, and small enough .*e\+200"):
            metric(a, b, lambda x, huge=huge: x.double() * (1e200 if huge(x) else 1))


def test_statistics_too_large_to_compute_with_are_not_kept(tmp_path):
    with pytest.raises(ValueError, match="small enough"): feature_statistics(gaussian(40, 3), lambda x: x.double() * 1e200, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_too_many_neighbors():
    with pytest.raises(ValueError, match="more than 9"): precision_recall(gaussian(9, 3), gaussian(9, 3), flat, 9)


@pytest.mark.parametrize("change, match", [
    (lambda s: s | {"sum": s["sum"] * torch.nan}, "finite"), (lambda s: s | {"outer": s["outer"][:2]}, "real must hold"),
    (lambda s: s | {"more": s["sum"]}, "real must hold"), (lambda s: {}, "real must hold"), (lambda s: s | {"number": torch.tensor(1)}, "two samples")],
    ids=["NaN", "shape", "more", "nothing", "one sample"])
def test_statistics_that_are_none(change, match):
    with pytest.raises(ValueError, match=match): frechet_distance(change(feature_statistics(gaussian(40, 3), flat)), gaussian(40, 3), flat)


def test_files_that_hold_no_statistics_or_those_of_other_samples(tmp_path):
    from safetensors.torch import save_file
    a, path = gaussian(40, 3), tmp_path / "real.safetensors"
    for content in (b"", b"no statistics"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="real.safetensors is damaged"): feature_statistics(a, flat, path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="real.safetensors must hold what feature_statistics returns.*weight"): feature_statistics(a, flat, path)
    path.unlink()
    feature_statistics(a, flat, path)
    before = path.read_bytes()
    for other in (gaussian(40, 3, seed=1), gaussian(41, 3), a.double(), a.reshape(40, 1, 3)):
        with pytest.raises(ValueError, match="other samples"): feature_statistics(other, flat, path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="is a folder"): feature_statistics(a, flat, tmp_path)


@pytest.mark.parametrize("judge", [lambda x, y: recognition_rate(x, y, flat), lambda x, y: train_classifier(x, y, 1)], ids=["recognition_rate", "train_classifier"])
def test_images_and_classes_that_do_not_fit(judge):
    images, labels = torch.eye(4)[:, None, None], torch.arange(4)
    for x, y, error, match in (
        (images * torch.nan, labels, ValueError, "images must be finite"), (images.int(), labels, TypeError, "images"), (images[:0], labels[:0], ValueError, "images"),
        (images, labels.float(), TypeError, "labels"), (images, labels.bool(), TypeError, "labels"), (images, [0, 1, 2, 3], TypeError, "labels"),
        (images, labels[:, None, None], ValueError, "labels"), (images, labels[:1], ValueError, "labels"), (images, labels - 1, ValueError, "labels")):
        with pytest.raises(error, match=match): judge(x, y)


def test_classifiers_of_what_is_no_image_and_classifiers_without_answers():
    for x in (torch.randn(9, 8, 8), torch.randn(9, 64)):
        with pytest.raises(ValueError, match=r"images must have shape \(n, channels, height, width\), got \(9,"): train_classifier(x, torch.arange(9), 1)
    for answer in (lambda x: x * torch.nan, lambda x: x[:, 0], lambda x: x[:2]):
        with pytest.raises(ValueError, match="classifier must answer"): recognition_rate(torch.eye(4), torch.arange(4), answer)


def test_consistency_error_of_what_is_not_finite_and_of_nothing():
    data = two_moons(20)
    with pytest.raises(ValueError, match="answers at noise level 2 must be finite"): consistency_error(lambda x, sigma: x * torch.nan, data, [2.])
    with pytest.raises(ValueError, match="data must be finite, but number 3"): consistency_error(lambda x, sigma: x, data.index_fill(0, torch.tensor(3), torch.inf), [2.])
    with pytest.raises(ValueError, match="data must"): consistency_error(lambda x, sigma: x, data[:0], [2.])
    with pytest.raises(ValueError, match="samples must be at least 1"): consistency_error(lambda x, sigma: x, data, [1.], 0)


def test_inception_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"pip install .consistency_models\[inception\]"): inception_features()


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="it is installed; its weights would be downloaded")
def test_inception_says_that_its_weights_need_another_package():
    pytest.importorskip("torchmetrics")
    with pytest.raises(ImportError, match=r"pip install .consistency_models\[inception\]"): inception_features()
