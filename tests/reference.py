"""What the package computes, written as its definitions: NumPy, float64, a loop for each index.

Slow on purpose. Nothing here calls the package, so that agreeing with it means something.
Arrays are `[rows, columns, channels]`, one photograph, unless a docstring says otherwise.
"""

import numpy as np

IGNORED = 255


def atrous_conv(x, kernel, *, rate=1, stride=1):
    """y[i, j] = sum over taps of x[s i + r m - p, s j + r n - p] w[m, n] (Section 3.1).

    The padding is r (k - 1) / 2 zeros on each side; kernel is `[k, k, in, out]`.
    """
    rows, columns, _ = x.shape
    size, before = kernel.shape[0], rate * (kernel.shape[0] - 1) // 2
    out = np.zeros((-(-rows // stride), -(-columns // stride), kernel.shape[3]))
    for i, j, m, n in np.ndindex(*out.shape[:2], size, size):
        row, column = stride * i + rate * m - before, stride * j + rate * n - before
        if 0 <= row < rows and 0 <= column < columns:
            out[i, j] += x[row, column] @ kernel[m, n]
    return out


def pool(x, *, kernel=3, stride=1, how="max"):
    """Caffe's pooling with padding (kernel - 1) / 2.

    Windows are added until the padded photograph is covered, and the last is dropped if it
    starts behind the photograph. Padding is left out of a maximum and counted in a mean.
    """
    padding = (kernel - 1) // 2

    def starts(size):
        found = [-padding]
        while found[-1] + kernel < size + padding:
            found.append(found[-1] + stride)
        return found[:-1] if padding and found[-1] >= size else found

    def window(row, column):
        part = x[max(row, 0) : row + kernel, max(column, 0) : column + kernel]
        return part.max((0, 1)) if how == "max" else part.sum((0, 1)) / kernel**2

    return np.array([[window(i, j) for j in starts(x.shape[1])] for i in starts(x.shape[0])])


def bilinear(x, rows, columns):
    """Two-tap interpolation at fractional places, which are held inside the photograph."""
    out = np.zeros((len(rows), len(columns), x.shape[2]))
    for i, j in np.ndindex(out.shape[:2]):
        row = min(max(rows[i], 0), x.shape[0] - 1)
        column = min(max(columns[j], 0), x.shape[1] - 1)
        top, left = int(row), int(column)
        bottom, right = min(top + 1, x.shape[0] - 1), min(left + 1, x.shape[1] - 1)
        upper = (1 - column + left) * x[top, left] + (column - left) * x[top, right]
        lower = (1 - column + left) * x[bottom, left] + (column - left) * x[bottom, right]
        out[i, j] = (1 - row + top) * upper + (row - top) * lower
    return out


def resize(x, size, *, alignment):
    """Bilinear resizing to `size`: corner to corner, or pixel area to pixel area."""
    return bilinear(x, *(places(n, m, alignment) for n, m in zip(x.shape[:2], size, strict=True)))


def places(size, out, alignment):
    """Where in 0..size - 1 each of `out` samples is taken."""
    if alignment == "half_pixel":
        return [(i + 0.5) * size / out - 0.5 for i in range(out)]
    return [i * (size - 1) / max(out - 1, 1) for i in range(out)]


def cross_entropies(logits, labels):
    """-log softmax of the right class for each pixel that counts, as a list."""
    found = []
    for place in np.ndindex(labels.shape):
        if labels[place] != IGNORED:
            scores = logits[place].astype(float) - logits[place].max()
            found.append(np.log(np.exp(scores).sum()) - scores[labels[place]])
    return found


def mean_cross_entropy(logits, labels):
    """Over the pixels that count of all photographs given, `[b, ...]`; divided by at least 1."""
    found = [c for maps in zip(logits, labels, strict=True) for c in cross_entropies(*maps)]
    return sum(found) / max(len(found), 1)


def msc_maps(whole, three_quarters, half):
    """The four score maps of the release, from those of scales 1, 0.75 and 0.5, `[b, ...]`."""
    size = whole.shape[1:3]
    larger = [
        np.array([resize(m, size, alignment="corners") for m in maps])
        for maps in (three_quarters, half)
    ]
    fused = np.maximum(np.maximum(whole, larger[0]), larger[1])
    return fused, whole, larger[0], half


def msc_loss(whole, three_quarters, half, labels):
    """Four losses: fused, 1 and enlarged 0.75 against label / 8, raw 0.5 against label / 16."""
    fused, whole, three_quarters, half = msc_maps(whole, three_quarters, half)
    at_8 = (fused, whole, three_quarters)
    return sum(mean_cross_entropy(m, labels[:, ::8, ::8]) for m in at_8) + mean_cross_entropy(
        half, labels[:, ::16, ::16]
    )


def confusion(labels, predicted, num_classes):
    """Pixels by (truth, prediction)."""
    counts = np.zeros((num_classes, num_classes), int)
    for truth, guess in zip(np.ravel(labels), np.ravel(predicted), strict=True):
        if truth != IGNORED:
            counts[truth, guess] += 1
    return counts


def iou(labels, predicted, num_classes):
    """Intersection over union by sets of pixels; None for a class that occurs nowhere."""
    labels, predicted = np.ravel(labels), np.ravel(predicted)
    counted = set(np.flatnonzero(labels != IGNORED))
    found = []
    for c in range(num_classes):
        truth = counted & set(np.flatnonzero(labels == c))
        guess = counted & set(np.flatnonzero(predicted == c))
        found.append(len(truth & guess) / len(truth | guess) if truth | guess else None)
    return found


def trimap(labels, *, width, boundary):
    """Pixels that count in a band of `width`, as a mask.

    void: the photograph's void pixels dilated by a (2 width + 1)^2 square. classes: pixels whose
    (2 width + 1)^2 neighbourhood holds another label, void too. Void itself never counts.
    """
    rows, columns = labels.shape
    band = np.zeros(labels.shape, bool)
    for i, j in np.ndindex(rows, columns):
        top, left = max(i - width, 0), max(j - width, 0)
        around = labels[top : i + width + 1, left : j + width + 1]
        near = around == IGNORED if boundary == "void" else around != labels[i, j]
        band[i, j] = near.any() and labels[i, j] != IGNORED
    return band


def sgd(params, gradients, *, rates, momentum, decay, multipliers, rate_first=True):
    """Caffe's solver over named arrays; `gradients` holds a dictionary for each update.

    `multipliers` gives (of the learning rate, of the decay) by name. With `rate_first` off the
    rate multiplies the buffer when it is read, as PyTorch has it.
    """
    params = {name: np.array(w, float) for name, w in params.items()}
    buffers = {name: np.zeros_like(w) for name, w in params.items()}
    for rate, update in zip(rates, gradients, strict=True):
        for name, w in params.items():
            of_rate, of_decay = multipliers[name]
            g = update[name] + decay * of_decay * w
            if rate_first:
                buffers[name] = momentum * buffers[name] + rate * of_rate * g
                params[name] = w - buffers[name]
            else:
                buffers[name] = momentum * buffers[name] + g
                params[name] = w - rate * of_rate * buffers[name]
    return params


def boundary_bands(labels, predicted, num_classes, ratio):
    """[intersection, union] of each class's bands, by erosion (Boundary IoU, CVPR 2021).

    A band is a mask without what is left of it after d erosions by a 3x3 square; outside the
    photograph there is no mask. Void pixels are taken out of both masks first.
    """
    rows, columns = labels.shape
    width = max(1, int(round(ratio * (rows**2 + columns**2) ** 0.5)))
    valid = labels != IGNORED

    def band(mask):
        left = mask
        for _ in range(width):
            framed = np.pad(left, 1)
            left = np.ones_like(left)
            for i, j in np.ndindex(3, 3):
                left = left & framed[i : i + rows, j : j + columns]
        return mask & ~left

    counts = []
    for c in range(num_classes):
        truth, found = band((labels == c) & valid), band((predicted == c) & valid)
        counts.append([(truth & found).sum(), (truth | found).sum()])
    return np.array(counts)
