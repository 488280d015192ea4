"""Zero-shot editing against simple baselines, on held-out images. Run as `python benchmarks/editing.py --root DATA`.

The first test digits of MNIST (read by torchvision from DATA) with the bundled model `mnist`, and new avatars with
the bundled model `avatars`; both are told the class. PSNR and SSIM compare each image with its truth, the Fréchet
distance compares all results with all truths in the features of a classifier. Each result of the models is measured for
several seeds, and so is their mean over the seeds, which is closer to the truth and blurred. The results go to
`benchmarks/results/editing.json`.
"""
import warnings

import torch
import torch.nn.functional as F
from common import parser, pick_device, write
from torchmetrics.functional.image import peak_signal_noise_ratio as psnr
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from consistency_models import (
    colorize,
    denoise,
    frechet_distance,
    from_pretrained,
    inpaint,
    load_avatars,
    preset_mask,
    super_resolve,
    torchvision_dataset,
    train_classifier,
)
from consistency_models.data import open_data
from consistency_models.editing import LUMINANCE


def mean_fill(x, mask):
    """Fill the hole of each image with the mean of what is known"""
    known = (1 - mask).expand_as(x)
    return torch.where(mask == 1, ((x * known).sum((1, 2, 3)) / known.sum((1, 2, 3)))[:, None, None, None], x)


def harmonic_fill(x, mask, rounds=2000):
    """Fill the hole smoothly: each missing pixel becomes the mean of its four neighbours"""
    x = mean_fill(x, mask)
    for _ in range(rounds):
        p = F.pad(x, (1, 1, 1, 1), mode="replicate")
        x = torch.where(mask == 1, (p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]) / 4, x)
    return x


def blur(x, width):
    """Smooth with a Gaussian of this width in pixels"""
    line = torch.exp(-0.5 * (torch.arange(-6, 7, device=x.device) / width) ** 2)
    line = (line / line.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (6, 6, 6, 6), mode="replicate"), line, groups=x.shape[1])
    return F.conv2d(x, line.mT, groups=x.shape[1])


def best_blur(noisy, truth):
    """The Gaussian filter whose result is closest to the truth"""
    return max((blur(noisy, w / 4) for w in range(1, 13)), key=lambda x: psnr(x, truth, data_range=2.0))


def digits_tasks(x, labels):
    """For each task on digits: the model's results as a function of the generator, and the baselines"""
    net, generator = from_pretrained("mnist", x.device), torch.Generator().manual_seed(100)
    for name, title in (("bottom", "inpaint the lower half"), ("center", "inpaint the center")):
        mask = preset_mask(name, 28, 28).to(x)
        filled = {"mean": mean_fill(x, mask), "harmonic": harmonic_fill(x, mask)}
        yield title, lambda g, m=mask: inpaint(net, x, m, generator=g, class_labels=labels), filled
    for factor in (2, 4):
        low = F.avg_pool2d(x, factor)
        enlarged = {"nearest": F.interpolate(low, scale_factor=factor), "bicubic": F.interpolate(low, scale_factor=factor, mode="bicubic")}
        yield f"enlarge {factor} times", lambda g, low=low, f=factor: super_resolve(net, low, f, generator=g, class_labels=labels), enlarged
    noisy = x + 0.5 * torch.randn(x.shape, generator=generator).to(x)
    smooth = {"noisy": noisy.clamp(-1, 1), "best Gaussian filter": best_blur(noisy, x)}
    yield "denoise, σ = 0.5", lambda g: denoise(net, noisy, 0.5, class_labels=labels), smooth


def faces_tasks(x, labels):
    """The same for avatars"""
    net, generator = from_pretrained("avatars", x.device), torch.Generator().manual_seed(100)
    gray = (x * torch.tensor(LUMINANCE, device=x.device).view(3, 1, 1)).sum(1, keepdim=True)
    yield "avatars: colorize", lambda g: colorize(net, gray, generator=g, class_labels=labels), {"gray": gray.expand_as(x)}
    low = F.avg_pool2d(x, 2)
    enlarged = {"nearest": F.interpolate(low, scale_factor=2), "bicubic": F.interpolate(low, scale_factor=2, mode="bicubic")}
    yield "avatars: enlarge 2 times", lambda g: super_resolve(net, low, 2, generator=g, class_labels=labels), enlarged
    noisy = x + 0.5 * torch.randn(x.shape, generator=generator).to(x)
    smooth = {"noisy": noisy.clamp(-1, 1), "best Gaussian filter": best_blur(noisy, x)}
    yield "avatars: denoise, σ = 0.5", lambda g: denoise(net, noisy, 0.5, class_labels=labels), smooth


def score(results, truth, features):
    """Mean and range of each measure over several results for the same images"""
    measures = {
        "psnr": [psnr(x, truth, data_range=2.0).item() for x in results], "ssim": [ssim(x, truth, data_range=2.0).item() for x in results],
        "frechet": [frechet_distance(truth, x, features) for x in results]}
    digits = {"psnr": 1, "ssim": 3, "frechet": 1}
    def text(name, v):
        mean, low, high = (f"{n:.{digits[name]}f}" for n in (sum(v) / len(v), min(v), max(v)))
        return mean if low == high else f"{mean} ({low} to {high})"
    return {name: text(name, values) for name, values in measures.items()}


def measure(tasks, truth, features, seeds):
    """A row for each task and method"""
    for task, run, baselines in tasks:
        for name, x in baselines.items(): yield {"task": task, "method": name} | score([x.clamp(-1, 1)], truth, features)
        results = [run(torch.Generator().manual_seed(s)).clamp(-1, 1) for s in range(1 if "denoise" in task else seeds)]
        yield {"task": task, "method": "this package"} | score(results, truth, features)
        if len(results) > 1: yield {"task": task, "method": f"mean of {seeds} results"} | score([torch.stack(results).mean(0)], truth, features)


def main():
    arguments = parser(__doc__, "editing")
    arguments.add_argument("--root", default="data", help="folder that holds MNIST")
    arguments.add_argument("--n", type=int, default=200, help="images")
    arguments.add_argument("--seeds", type=int, default=4, help="seeds of the editing")
    options = arguments.parse_args()
    device = pick_device(options.threads)
    warnings.filterwarnings("ignore", message="a Fréchet distance from")
    training, classes = (t.to(device) for t in open_data("MNIST", root=options.root).tensors)
    test = torchvision_dataset("MNIST", options.root, train=False, download=False)
    x, labels = zip(*(test[i] for i in range(options.n)))
    x, labels = torch.stack(x).to(device), torch.tensor(labels, device=device)
    faces, kinds, _ = (t[:options.n].to(device) for t in load_avatars(False))
    features = {"digits": train_classifier(training, classes, 1500).features,
                "avatars": train_classifier(*(t.to(device) for t in load_avatars()[::2])).features}
    rows = []
    for tasks, truth, kind in ((digits_tasks(x, labels), x, "digits"), (faces_tasks(faces, kinds), faces, "avatars")):
        for row in measure(tasks, truth, features[kind], options.seeds):
            rows.append(row)
            print(" | ".join(row.values()), flush=True)
    write(options.out, images=options.n, seeds=options.seeds, rows=rows)


if __name__ == "__main__": main()
