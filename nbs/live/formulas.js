// The formulas of lessons 11, 13 and 16, as in the package.

export const SIGMA_MIN = 0.002;

// Karras' noise levels, ascending: Eq. 5 of Karras et al. (2022)
export function karras(n, { min = SIGMA_MIN, max = 80, rho = 7 } = {}) {
  const [a, b] = [min ** (1 / rho), max ** (1 / rho)];
  return Array.from({ length: n }, (_, i) => (a + (b - a) * i / (n - 1)) ** rho);
}

// c_skip, c_out, c_in, c_noise: Karras et al. (2022), Table 1, with the shift of Song et al. (2023), appendix C
export function scalings(sigma, data = 0.5, min = SIGMA_MIN) {
  const root = Math.hypot(sigma, data);
  return { skip: data ** 2 / ((sigma - min) ** 2 + data ** 2), out: data * (sigma - min) / root,
           in: 1 / root, noise: Math.log(sigma) / 4 };
}

// The error function, by its series 2/√π e^(-x²) Σ 2ⁿ x²ⁿ⁺¹ / (1·3···(2n+1)), to the last digits
export function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

// Probability of each step of the grid: section 3.5 of Song & Dhariwal (2023)
export function lognormalProbabilities(sigmas, mean = -1.1, std = 2) {
  const mass = sigmas.map(s => erf((Math.log(s) - mean) / (Math.SQRT2 * std)));
  const p = mass.slice(1).map((m, i) => m - mass[i]), total = p.reduce((a, b) => a + b);
  return p.map(each => each / total);
}

// Shares of one as whole per cent that add up to 100: the largest remainders are rounded up
export function percents(shares) {
  const cents = shares.map(share => Math.floor(100 * share)), rest = i => 100 * shares[i] - cents[i];
  const order = shares.map((_, i) => i).sort((i, j) => rest(j) - rest(i));
  for (const i of order.slice(0, 100 - cents.reduce((a, b) => a + b))) cents[i]++;
  return cents;
}

// Number of levels at step k of K: appendix C of Song et al. (2023)
export function timestepsSchedule(k, K, initial = 2, final = 150) {
  return Math.min(Math.ceil(Math.sqrt(k / K * ((final + 1) ** 2 - initial ** 2) + initial ** 2) - 1), final) + 1;
}

// The same, doubled by stages: section 3.4 of Song & Dhariwal (2023)
export function improvedTimestepsSchedule(k, K, initial = 10, final = 1280) {
  const stage = Math.max(1, Math.floor(K / (Math.log2(Math.floor(final / initial)) + 1)));
  return Math.min(initial * 2 ** Math.floor(k / stage), final) + 1;
}

// Pseudo-Huber distance of one number and its derivative: section 3.3 of Song & Dhariwal (2023)
export const pseudoHuberLoss = (error, c) => Math.sqrt(error ** 2 + c ** 2) - c;
export const pseudoHuberGradient = (error, c) => error / Math.sqrt(error ** 2 + c ** 2);

// The answer with the least mean distance from its targets: where their mean pull, which grows with the answer, is zero
export function bestAnswer(pull, low, high) {
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2, total = pull(middle);
    if (total === 0) return middle;
    if (total < 0) low = middle; else high = middle;
  }
  return (low + high) / 2;
}

// Where the path through x ends if the data are N(0, std²): gaussian_consistency_function is this times x
export const gaussianShrink = (sigma, std = 0.5, min = SIGMA_MIN) =>
  Math.hypot(std, min) / Math.hypot(std, Math.max(sigma, min));

// What the network must supply, F = (f - c_skip x) / c_out, as parts of x0 and z in x = x0 + σ z. If the data are the
// one picture x0, its paths are straight lines and f = x0 + σ_min z.
export function supplied(sigma, data = 0.5, min = SIGMA_MIN) {
  const { skip, out } = scalings(sigma, data, min);
  return out > 0 ? [(1 - skip) / out, (min - skip * sigma) / out] : [0, -1];
}

// A face of lesson 10, shape (3, 16, 16), values in [-1, 1]
const COLORS = ["323232", "3d8a6b", "77ad97", "8ca3ae", "cb9e6e", "d0a87c", "de0f0d", "dec2a4", "ffdfbf", "ffeead",
                "fff3c6", "ffffff"].map(hex => [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 127.5 - 1));
const FACE = `8881111111111888888111111112188888811111111218888111111111121118
              88855555555558888880bbb00bbb08888855bb355bb355888855777557775588
              8885555555555888888555666555588888855555555558888888555555558888
              88888884488888888889a4444449a88888a9a9a9a9a9a98888a9a9a9a9a9a988`.replace(/\s/g, "");
export const face = () => [0, 1, 2].flatMap(channel => [...FACE].map(color => COLORS[parseInt(color, 16)][channel]));

// Half-precision numbers from base64, lowest byte first
export function halves(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
    const half = view.getUint16(2 * i, true), power = half >> 10 & 31, part = half & 1023;
    return (half >> 15 ? -1 : 1) * (power ? (1 + part / 1024) * 2 ** (power - 15) : part * 2 ** -24);
  });
}

// A plain network with ReLU, as a consistency function f(x, σ) = c_skip x + c_out F(c_in x, c_noise): Eq. 5 of
// Song et al. (2023). A point x is a list of numbers.
export function plainNetwork(sizes, weights, data) {
  let at = 0;
  const take = n => Float64Array.from(weights.subarray(at, at += n));
  const layers = sizes.slice(1).map((outs, i) =>
    ({ ins: sizes[i], outs, matrix: take(sizes[i] * outs), bias: take(outs), result: new Float64Array(outs) }));
  const input = new Float64Array(sizes[0]);
  return (x, sigma) => {
    const c = scalings(sigma, data);
    for (let i = 0; i < x.length; i++) input[i] = c.in * x[i];
    input[x.length] = c.noise;
    let given = input;
    for (const layer of layers) {
      const { ins, outs, matrix, bias, result } = layer, last = layer === layers.at(-1);
      for (let row = 0, k = 0; row < outs; row++) {
        let sum = bias[row];
        for (let j = 0; j < ins; j++) sum += matrix[k++] * given[j];
        result[row] = sum < 0 && !last ? 0 : sum;
      }
      given = result;
    }
    return x.map((v, i) => c.skip * v + c.out * given[i]);
  };
}

// The denoised sample if the data lie in two bells, around center and -center: lesson 12
export const bellsDenoiser = (center, width) => ([x], sigma) => {
  const variance = width ** 2 + sigma ** 2, kept = width ** 2 / variance;
  return [kept * x + (1 - kept) * center * Math.tanh(center * x / variance)];
};

// ... and if they are a list of points in the plane, (x1, y1, x2, y2, ...): Eq. 57 of Karras et al. (2022)
export const planeDenoiser = data => ([x, y], sigma) => {
  const n = data.length / 2, far = new Float64Array(n);
  let nearest = Infinity, total = 0, a = 0, b = 0;
  for (let i = 0; i < n; i++) nearest = Math.min(nearest, far[i] = (x - data[2 * i]) ** 2 + (y - data[2 * i + 1]) ** 2);
  for (let i = 0; i < n; i++) {
    const power = (nearest - far[i]) / (2 * sigma ** 2);
    if (power < -30) continue;                      // next to nothing
    const w = Math.exp(power);
    total += w; a += w * data[2 * i]; b += w * data[2 * i + 1];
  }
  return [a / total, b / total];
};

// One step along the path by Heun's method: Algorithm 1 of Karras et al. (2022)
export function heunStep(denoiser, x, now, then) {
  const slope = (at, sigma) => { const d = denoiser(at, sigma); return at.map((v, i) => (v - d[i]) / sigma); };
  const first = slope(x, now), second = slope(x.map((v, i) => v + (then - now) * first[i]), then);
  return x.map((v, i) => v + (then - now) * (first[i] + second[i]) / 2);
}

// All points of the path from x at level sigma down to the data, as [point, level]
export function walk(denoiser, x, sigma, steps = 40, min = SIGMA_MIN) {
  const levels = karras(steps + 1, { min, max: Math.max(sigma, min) }).reverse(), points = [[x, levels[0]]];
  for (const then of levels.slice(1)) points.push([heunStep(denoiser, ...points.at(-1), then), then]);
  return points;
}
