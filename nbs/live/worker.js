// Networks run here, beside the page, so that a slider never waits for one. ONNX Runtime Web comes with the site.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { evaluate } from "./network.js";

ort.env.wasm.numThreads = 1;                   // more need headers that pages of GitHub do not send
const networks = {};

function network(name) {
  const address = new URL(`./models/${name}.onnx`, import.meta.url).href;
  networks[name] ??= ort.InferenceSession.create(address);
  networks[name].catch(() => delete networks[name]);       // so that it can be asked for again
  return networks[name];
}

onmessage = async ({ data: { id, name, ask } }) => {
  try {
    const session = await network(name), f = ask && await evaluate(ort, session, ask);
    postMessage({ id, f }, f ? [f.buffer] : []);
  } catch (error) { postMessage({ id, error: error.message }); }
};
