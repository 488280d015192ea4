// Sampling and editing, Algorithms 1 and 4 of Song et al. (2023), for any consistency function f(x, sigma).

export const SIGMA_MIN = 0.002;

// Numbers of a standard normal distribution, the same for the same seed: mulberry32, then Box and Muller
export function normal(seed, n) {
  let state = (seed * 0x9E3779B9) >>> 0;
  const uniform = () => {
    state = (state + 0x6D2B79F5) >>> 0;
    let t = Math.imul(state ^ state >>> 15, state | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  const z = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const r = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
    z[i] = r * Math.cos(angle);
    if (i + 1 < n) z[i + 1] = r * Math.sin(angle);
  }
  return z;
}

// One step after the other: `{ sigma, noisy, denoised }`. `z[i]` is the noise of step i, so that a level may change
// while the noise stays. Where `mask` is 0 the values of `known` are put back after each step; with `start`, the
// first noise is added to it. Answers are clipped to [-1, 1].
export async function* steps(f, sigmas, z, { known, mask, start } = {}) {
  let x = start ?? (mask ? known.map((v, i) => mask[i] ? 0 : v) : new Float32Array(z[0].length));
  for (const [i, sigma] of sigmas.entries()) {
    const spread = i ? Math.sqrt(sigma ** 2 - SIGMA_MIN ** 2) : sigma, from = x;
    const noisy = from.map((v, j) => v + spread * z[i][j]);
    const answer = await f(noisy.slice(), sigma);
    x = answer.map((v, j) => mask && !mask[j] ? known[j] : Math.min(1, Math.max(-1, v)));
    yield { sigma, noisy, denoised: x };
  }
}
