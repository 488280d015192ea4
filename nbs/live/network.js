// One evaluation of an exported consistency function: f(x, sigma) for a batch, with class labels and a guidance weight.

export async function evaluate(ort, network, { x, shape, sigma, labels, weight }) {
  const n = x.length / shape.reduce((a, b) => a * b);
  const each = values => typeof values === "number" ? new Float32Array(n).fill(values) : Float32Array.from(values);
  const classes = typeof labels === "number" ? new Array(n).fill(labels) : Array.from(labels);
  const { f } = await network.run({
    x: new ort.Tensor("float32", x, [n, ...shape]),
    sigma: new ort.Tensor("float32", each(sigma), [n]),
    class_labels: new ort.Tensor("int64", BigInt64Array.from(classes, BigInt), [n]),
    weight: new ort.Tensor("float32", each(weight), [n]),
  });
  return new Float32Array(f.data);
}
