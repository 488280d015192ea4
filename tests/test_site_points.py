"""The tiny networks of the page on paths: JavaScript answers as the package does, and the file is what the tool makes."""
import base64
import json
import math

import points
import pytest
import torch
from conftest import gaussian, javascript

from consistency_models import consistency_function, exact_consistency_function, ideal_denoiser, two_moons
from consistency_models.paths import heun_step, two_bells

KNOWN = json.loads(points.FILE.read_text())


def in_node(code, **given):
    """What `code` is in JavaScript, with `js` for formulas.js, `known` for points.json, and both ideal denoisers"""
    return torch.tensor(javascript(f"""(() => {{
        const js = formulas, known = JSON.parse(readFileSync(file, "utf8"));
        const bells = js.bellsDenoiser(known.bells.center, known.bells.width);
        const moons = js.planeDenoiser(js.halves(known.moons.data));
        return {code}; }})()""", file=str(points.FILE), **given), dtype=torch.float64)


def data():
    text = base64.b64decode(KNOWN["moons"]["data"])
    return torch.frombuffer(bytearray(text), dtype=torch.float16).double().reshape(-1, 2)


def noisy(name, n=60):
    """Points of the data at levels from 0.01 to the top"""
    sigma = torch.logspace(-2, math.log10(KNOWN[name]["sigma_max"]), n, dtype=torch.float64)
    clean = two_bells(n).double() if name == "bells" else data()[:n]
    return clean + sigma[:, None] * gaussian(*clean.shape).double(), sigma


@pytest.mark.parametrize("method", ["CT", "CD", "ECT"])
@pytest.mark.parametrize("name", ["bells", "moons"])
def test_networks_answer_as_in_the_package(name, method):
    (x, sigma), own = noisy(name), KNOWN[name]
    f = consistency_function(points.load(own["runs"][method]["weights"][-2], own["sizes"], own["sigma_data"]))
    there = in_node("""(({ sizes, sigma_data, runs }) => {
        const f = js.plainNetwork(sizes, js.halves(runs[method].weights.at(-2)), sigma_data);
        return x.map((at, i) => f(at, sigma[i]));
    })(known[name])""", x=x.tolist(), sigma=sigma.tolist(), name=name, method=method)
    with torch.no_grad(): torch.testing.assert_close(there, f(x.float(), sigma.float()).double(), atol=1e-4, rtol=0)


def test_denoisers_and_steps_are_those_of_the_package():
    """The plane exactly. The bells as a formula, where the package has a list: it comes close with 20,000 numbers"""
    x, sigma = noisy("moons")
    asked = {"x": x.tolist(), "sigma": sigma.tolist()}
    torch.testing.assert_close(in_node("x.map((at, i) => moons(at, sigma[i]))", **asked), ideal_denoiser(x, sigma, data()), atol=1e-9, rtol=0)
    stepped = heun_step(lambda x, s: ideal_denoiser(x, s, data()), x, sigma, sigma / 2)
    there = in_node("x.map((at, i) => js.heunStep(moons, at, sigma[i], sigma[i] / 2))", **asked)
    torch.testing.assert_close(there, stepped, atol=1e-9, rtol=0)
    x, sigma = noisy("bells")
    there = in_node("x.map((at, i) => bells(at, sigma[i]))", x=x.tolist(), sigma=sigma.tolist())
    torch.testing.assert_close(there, ideal_denoiser(x, sigma, two_bells(20_000).double()), atol=1e-4, rtol=0)
    torch.testing.assert_close(there, points.bells_denoiser(x, sigma), atol=1e-12, rtol=0)


def test_paths_end_where_those_of_the_package_do():
    """The same method for the plane; for the bells the package has a list of 4,000 numbers instead of the formula"""
    x, sigma = noisy("moons")
    there = in_node("x.map((at, i) => js.walk(moons, at, sigma[i]).at(-1)[0])", x=x.tolist(), sigma=sigma.tolist())
    torch.testing.assert_close(there, exact_consistency_function(x, sigma, data()), atol=1e-6, rtol=0)
    x, sigma = noisy("bells")
    there = in_node("x.map((at, i) => js.walk(bells, at, sigma[i]).at(-1)[0])", x=x.tolist(), sigma=sigma.tolist())
    torch.testing.assert_close(there, exact_consistency_function(x, sigma, two_bells(4000).double()), atol=1e-4, rtol=0)


def test_the_file_has_the_form_that_the_page_reads():
    assert set(KNOWN) == {"bells", "moons", "denoising"} and KNOWN["denoising"] == points.DENOISING
    assert points.FILE.stat().st_size < 600_000
    torch.manual_seed(0)
    assert torch.equal(two_moons(500).half().double(), data())
    for name, samples in (("bells", two_bells(4000)), ("moons", data())):
        own = KNOWN[name]
        assert (tuple(own["sizes"]), own["sigma_max"]) == (points.SIZES[name], points.TOP[name])
        assert own["sigma_data"] == pytest.approx(samples.std().item(), abs=1e-3)
        numbers = sum((a + 1) * b for a, b in zip(own["sizes"], own["sizes"][1:]))
        assert set(own["runs"]) == set(points.objectives(name, samples, own["sigma_data"]))
        for run in own["runs"].values():
            assert run["steps"] == sorted(set(run["steps"])) and (run["steps"][0], run["steps"][-1]) == (0, points.STEPS)
            assert len(run["steps"]) == len(run["weights"]) == points.KEPT[name]
            assert all(len(base64.b64decode(text)) == 2 * numbers for text in run["weights"])


def test_a_training_keeps_its_moments_and_begins_alike():
    """A few steps of each method, from the same first weights as in the file"""
    samples, sizes = two_bells(400), points.SIZES["bells"]
    for method, phases in points.objectives("bells", samples, 0.5025).items():
        short = [(objective, 3) for objective, _ in phases]
        kept = points.train(short, samples, sizes, 0.5025, {0, 2}, batch=8)
        assert sorted(kept) == [0, 2, 3 * len(short)]
        assert points.text_of(kept[0]) == KNOWN["bells"]["runs"][method]["weights"][0]
        assert not torch.equal(kept[2], kept[0])


def test_moments_are_spread_by_what_happens():
    said = {0: 0., 1: 0., 2: 1., 3: 1., 4: 2., 5: 2.}
    kept = {k: torch.tensor([v]) for k, v in said.items()}
    assert points.spread(kept, 3, lambda weights: weights) == [0, 2, 5]
