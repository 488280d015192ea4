// Networks run here, beside the page, so that a slider never waits for one. ONNX Runtime Web comes with the site.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { evaluate } from "./network.js";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.wasm.numThreads = 1;                   // more need headers that pages of GitHub do not send
const networks = {};

onmessage = async ({ data: { id, name, ask } }) => {
  try {
    networks[name] ??= ort.InferenceSession.create(new URL(`./models/${name}.onnx`, import.meta.url).href);
    const network = await networks[name];
    const f = ask && await evaluate(ort, network, ask);
    postMessage({ id, f }, f ? [f.buffer] : []);
  } catch (error) { postMessage({ id, error: error.message }); }
};
