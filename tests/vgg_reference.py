"""The first release's 4x4 network by its prototxt, with its gradient: NumPy, float64, no JAX.

Arrays are `[b, h, w, c]`; parameters are named as in the package, so that their names are tested
too. Nothing here calls the package.
"""

import numpy as np

LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


def convolve(x, kernel, bias, *, rate, padding):
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (n - rate * (size - 1) for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[3])) + bias
    for m, n in np.ndindex(size, size):
        out += x[:, rate * m : rate * m + rows, rate * n : rate * n + columns] @ kernel[m, n]

    def backward(gradient):
        of_x, of_kernel = np.zeros_like(x), np.zeros_like(kernel)
        for m, n in np.ndindex(size, size):
            seen = np.s_[:, rate * m : rate * m + rows, rate * n : rate * n + columns]
            of_kernel[m, n] = np.einsum("bhwi,bhwo->io", x[seen], gradient)
            of_x[seen] += gradient @ kernel[m, n].T
        inside = of_x[:, padding : of_x.shape[1] - padding, padding : of_x.shape[2] - padding]
        return inside, {"kernel": of_kernel, "bias": gradient.sum((0, 1, 2))}

    return out, backward


def pool(x, *, kernel, stride, padding):
    """Caffe's: windows until the padded array is covered, without one that starts behind it."""

    def count(size):
        number = -(-(size + 2 * padding - kernel) // stride) + 1
        return number - (padding > 0 and (number - 1) * stride >= size + padding)

    shape = [count(n) for n in x.shape[1:3]]
    after = [
        (n - 1) * stride + kernel - padding - m for n, m in zip(shape, x.shape[1:3], strict=True)
    ]
    around = ((0, 0), (padding, max(after[0], 0)), (padding, max(after[1], 0)), (0, 0))
    padded = np.pad(x, around, constant_values=-np.inf)
    parts = [
        np.s_[:, m : m + stride * shape[0] : stride, n : n + stride * shape[1] : stride]
        for m, n in np.ndindex(kernel, kernel)
    ]
    values = np.stack([padded[part][:, : shape[0], : shape[1]] for part in parts])
    first = values.argmax(0)

    def backward(gradient):
        total = np.zeros_like(padded)
        for number, part in enumerate(parts):
            total[part][:, : shape[0], : shape[1]] += np.where(first == number, gradient, 0)
        return total[:, padding : padding + x.shape[1], padding : padding + x.shape[2]], {}

    return values.max(0), backward


def relu(x):
    return np.maximum(x, 0), lambda gradient: (gradient * (x > 0), {})


def forward(params, inputs, *, train):
    """Scores at stride 8, and what takes their gradient to the parameters'."""
    x, steps = inputs, []

    def apply(name, result):
        steps.append((name, result[1]))
        return result[0]

    for i, name in enumerate(LAYERS):
        rate = 2 if i == 4 else 1
        x = apply(
            f"trunk/{name}", convolve(x, *weights(params, f"trunk/{name}"), rate=rate, padding=rate)
        )
        x = apply(None, relu(x))
        if i < 3:
            x = apply(None, pool(x, kernel=2, stride=2, padding=1))
        elif i == 3:
            x = apply(None, pool(x, kernel=2, stride=1, padding=0 if train else 1))
        else:
            x = apply(None, pool(x, kernel=3, stride=1, padding=1))
    x = apply("head/fc6_1", convolve(x, *weights(params, "head/fc6_1"), rate=4, padding=6))
    x = apply(None, relu(x))
    x = apply("head/fc7_1", convolve(x, *weights(params, "head/fc7_1"), rate=1, padding=0))
    x = apply(None, relu(x))
    x = apply("head/fc8_1", convolve(x, *weights(params, "head/fc8_1"), rate=1, padding=0))

    def backward(gradient):
        found = {}
        for name, step in reversed(steps):
            gradient, of_params = step(gradient)
            found |= {f"{name}/{key}": value for key, value in of_params.items()}
        return found

    return x, backward


def weights(params, name):
    return params[f"{name}/kernel"], params[f"{name}/bias"]


def loss_and_gradient(params, inputs, labels):
    """Labels lose their first row and column and are shrunk by 8; mean over those below 255."""
    logits, backward = forward(params, inputs, train=True)
    labels = labels[:, 1:, 1:][:, ::8, ::8]
    valid = labels != 255
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    one_hot = np.arange(logits.shape[-1]) == np.where(valid, labels, 0)[..., None]
    loss = -(log_probs * one_hot).sum(-1)[valid].sum() / valid.sum()
    return loss, backward((np.exp(log_probs) - one_hot) * valid[..., None] / valid.sum())


def enlarge(scores):
    """Interp by 8 with aligned corners; then the first 7 and last 8 rows and columns are cut."""
    for axis in (1, 2):
        length = scores.shape[axis]
        place = np.arange(8 * length - 7) / 8
        low = np.minimum(place.astype(int), length - 2)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(4)])
        low, high = (np.take(scores, low + i, axis) for i in (0, 1))
        scores = low * (1 - part) + high * part
    return scores[:, 7:-8, 7:-8]
