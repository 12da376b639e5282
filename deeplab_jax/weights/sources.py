"""Weights of any known file as arrays under our names, and a header that says what they expect.

The header has `model` (the fields of DeepLabV2 that the weights settle), `class_names` (empty
where the file has no last layer for segmentation), `source` (file, its SHA-256, convention, what
it was trained on) and `skipped` (reason -> names that were not used). Where some branches of the
head were never trained, `untrained_branches` counts them from 0; see branches.py.

`inputs` are always BGR in 0..255 less the model's `mean_bgr`. Where the source expects RGB / 255
divided by a standard deviation, its first kernel takes up the order and the factor, which is
exact; the mean is carried, because the padding that a shifted input would need is not zero.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from deeplab_jax.models.deeplab import is_classifier
from deeplab_jax.types import VOC_CLASS_NAMES, UserError
from deeplab_jax.weights import branches, files, first_layer, formats, published, tables
from deeplab_jax.weights.caffemodel import Layer
from deeplab_jax.weights.files import Flat, Header, Refused
from deeplab_jax.weights.tables import Convention

PAPER_RATES = {(4, 3): (6, 12, 18, 24), (1, 3): (12,), (1, 1): (1,), (1, 4): (4,), (1, 7): (4,)}
"""Of ASPP-L, LargeFOV, the plain head, and the first release's 4x4 and 7x7 networks, by number of
branches and kernel size."""

V2S = re.compile(r"v2-?s(?![a-z])", re.IGNORECASE)
"""In the names of files of networks with ASPP-S, whose weights have the names of ASPP-L's."""

FC_WINDOW = 7
"""Rows and columns that VGG's fc6 sees of pool5."""
WRAPPERS = ("module.", "model.", "backbone.", "net.")
"""What training frameworks put before every name of the network, several in any order."""

LOSS = re.compile(r"(criterion|loss|loss_fn|loss_func|ce_loss)\.(\w+\.)*(weight|class_weights)$")
LOSS_REASON = "the classes' weights in the loss"

ReadAs = Literal["torchvision", "caffe"]
STYLES: dict[ReadAs, str] = {
    "torchvision": "RGB in 0..1, standardised",
    "caffe": "BGR in 0..255 less a mean pixel",
}
"""Inputs of networks with the names of torchvision. A ResNet's strides are in its 3x3 convolutions
with the first, and in its first 1x1 convolutions with the second."""

PIXELS, STANDARDISED = 0.02, 0.06
"""Gains of a first layer (first_layer.gain) below the one are for BGR in 0..255, above the other
for standardised RGB, whose deviations are 57 times smaller. Three networks that this package
trained from scratch on CamVid, on 0..255, have 0.009 to 0.011."""

PLAIN = re.compile(r"(tv_|gluon_)?resnet\d+[a-z0-9_]*-([0-9a-f]{8})\.")
"""Names under which torchvision and timm publish plain ResNets, with the start of the SHA-256."""


@dataclass(frozen=True)
class Answers:
    """What a file may leave open, as the user answers it; what the file says takes precedence."""

    aspp_rates: tuple[int, ...] | None = None
    """Rates of the head; None: the paper's, 6 12 18 24, or 12 for one branch. VGG of ImageNet is
    thinned to a head with these."""
    head_kernel_size: int = 3
    """Kernel of fc6 that VGG of ImageNet is thinned to."""
    head_width: int = 1024
    """Features of fc6 and fc7 that VGG of ImageNet is thinned to."""
    read_as: ReadAs | None = None
    """How a ResNet or VGG with torchvision's names was trained: torchvision (RGB in 0..1,
    standardised; strides in the 3x3) or caffe (BGR in 0..255 less a mean pixel; strides in the
    first 1x1). None: recognised."""
    scales: tuple[float, ...] | None = None
    """Scales of the input whose scores are fused."""
    branches: tuple[int, ...] | None = None
    """Branches of the head to keep, counted from 0, where the port that trained the weights sums
    only these: 0 1 for AdaptSegNet, AdvSemiSeg and speedinghzl before October 2017. None: all."""
    fresh_head: bool = False
    """Leave the last layer out, so that training starts it from scratch."""


NO_ANSWERS = Answers()


def read(path: Path, *, answers: Answers = NO_ANSWERS) -> tuple[Flat, Header]:
    """Arrays by our names, and the header; float64 where arithmetic was due, else as in the file.

    A path may be that of a zip with one weight file in it, or ZIP/NAME. A UserError for an unknown
    or damaged file, for names, shapes or numbers that no table explains, and for a question that
    the file leaves open.
    """
    try:
        with formats.unpacked(Path(path)) as found:
            return _read(found, answers)
    except Refused as error:
        raise UserError(f"{path} {error}") from None


def _read(path: Path, answers: Answers) -> tuple[Flat, Header]:
    given, metadata, layers = formats.read(path)
    if files.HEADER in metadata:
        flat = {name: array.astype(np.float32, copy=False) for name, array in given.items()}
        return flat, json.loads(metadata[files.HEADER])
    of_loss = [name for name, array in given.items() if array.ndim == 1 and LOSS.match(name)]
    match = _recognise({name: a for name, a in given.items() if name not in of_loss})
    flat = {ours: to_ours(name, match.used[name], ours) for name, ours in match.table.items()}
    _refuse_other_blocks(flat)
    convention, digest = match.convention, formats.sha256(path)
    known = published.find(path.name, digest, convention.model["backbone"])
    told = json.loads(metadata.get(files.EXPORTED, "{}"))
    if not told:
        plain = PLAIN.match(path.name)
        by_digest = known and known.sha256 or plain and digest.startswith(plain[2])
        convention = _as_trained(convention, flat, bool(by_digest), answers)
        flat = _thinned(_folded(flat, convention.std_rgb), answers)
        first = "head/fc6_" if convention.model["backbone"] == "vgg" else "head/fc8_"
        kernels = [name for name in flat if name.startswith(first) and name.endswith("/kernel")]
        fields = _fields(convention, flat, kernels, layers)
        if kernels:
            said = {match.table.get(f"{name}/weights"): la.dilation for name, la in layers.items()}
            dilations = [said.get(name, 0) for name in kernels]
            fields["aspp_rates"] = _rates(dilations, fields["head_kernel_size"], path, answers)
        if fields.get("scales", ()) is None:
            if not answers.scales:
                raise Refused(
                    "does not say whether it fuses scales of its input: give convert_weights.py "
                    "--scales 1.0, or --scales 1.0 0.75 0.5 where it was in that port's MSC"
                )
            fields["scales"] = answers.scales
        told = {"model": fields, "class_names": class_names(flat, known)}
        if untrained := branches.untrained(flat):
            told["untrained_branches"] = untrained
    source = {
        "file": path.name,
        "sha256": digest,
        "convention": convention.title,
        "trained_on": known.trained_on if known else None,
    }
    skipped = match.skipped | ({LOSS_REASON: of_loss} if of_loss else {})
    return flat, {"channel_order": "BGR", "source": source, "skipped": skipped} | told


def class_names(flat: Flat, known: published.Published | None) -> tuple[str, ...]:
    """A known file's, PASCAL VOC's for 21 classes, else numbers; empty without a last layer."""
    number = next((len(a) for name, a in flat.items() if name.endswith("/fc8_1/bias")), 0)
    for names in (known.class_names if known else (), VOC_CLASS_NAMES):
        if len(names) == number:
            return names
    return tuple(f"class {i}" for i in range(number))


class _Match(NamedTuple):
    """How far a convention explains a file: its table, and what of the file it uses and skips."""

    convention: Convention
    table: tables.Table
    used: dict[str, np.ndarray]
    skipped: dict[str, list[str]]
    explained: int
    """Names that it uses or skips; 0 where it uses none."""


def _recognise(given: Flat) -> _Match:
    """The convention that explains most names, which may have prefixes of WRAPPERS. Refused where
    none does, or names are left over on either side."""
    while given and (shared := [p for p in WRAPPERS if all(n.startswith(p) for n in given)]):
        given = {name.removeprefix(shared[0]): array for name, array in given.items()}
    best = max((_match(c, given) for c in tables.CONVENTIONS), key=lambda m: m.explained)
    if not best.explained:
        raise Refused(
            f"names its weights in no known way, e.g. {min(given, default='')[:60]!r}; a DeepLab "
            "v2, or Caffe's or torchvision's ResNet-50, -101, -152 or VGG-16 was expected"
        )
    _refuse_two_heads(given)
    unknown = _listed(sorted(best.used.keys() - best.table.keys()))
    missing = _listed(sorted(best.table.keys() - best.used.keys()))
    title = best.convention.title
    if unknown:
        also = f", and lacks {missing}" if missing else ""
        raise Refused(
            f"holds {unknown}, for which a {title} file has no place{also}; is a layer renamed?"
        )
    if missing:
        raise Refused(f"lacks {missing} of a {title} file; is it whole?")
    return best


def _match(convention: Convention, given: Flat) -> _Match:
    used, skipped = {}, {}
    for name, array in given.items():
        reasons = (why for what, why in convention.skipped if re.match(what, name))
        if reason := next(reasons, None):
            skipped.setdefault(reason, []).append(name)
        else:
            used[name] = array
    table = tables.table_of(convention.rows, used.keys())
    strangers = used.keys() - table.keys()
    fits = convention.axes_of_fc6 in (0, len(_shape(used, "fc6/weights")))
    explained = len(given) - len(strangers) if fits and len(strangers) < len(used) else 0
    return _Match(convention, table, used, skipped, explained)


def _refuse_two_heads(given: Flat) -> None:
    """ADVENT's and AdaptSegNet's auxiliary layer5 reads res4, which has half of res5's channels.

    Other networks with both names sum the two heads or give each a loss of its own.
    """
    five, six = (_shape(given, f"layer{i}.conv2d_list.0.weight")[1:2] for i in (5, 6))
    if five and six and 2 * five[0] != six[0]:
        raise Refused(
            f"has heads layer5 and layer6 on {five[0]} and {six[0]} channels; an auxiliary layer5, "
            "which is known, has half of layer6's"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(arrays: Flat, name: str) -> tuple[int, ...]:
    return arrays[name].shape if name in arrays else ()


def to_ours(name: str, array: np.ndarray, ours: str) -> np.ndarray:
    """`array` with its axes in our order: kernels `[rows, columns, in, features]`, a view."""
    given, is_kernel = array, ours.endswith("/kernel")
    window = {"head/fc6_": FC_WINDOW, "head/fc7_": 1}.get(ours[:9])
    if window and array.ndim == 2 and array.shape[1] % window**2 == 0:
        given = array.reshape(array.shape[0], array.shape[1] // window**2, window, window)
    real = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    if not real or not array.size or given.ndim != (4 if is_kernel else 1):
        axes = "the axes oihw" if is_kernel else "one axis"
        raise Refused(
            f"holds {name} as {array.dtype} of shape {array.shape}, and floating-point numbers "
            f"with {axes} were expected; is the file converted already?"
        )
    if not np.isfinite(array).all():
        raise Refused(
            f"holds numbers in {name} that are not finite; the training that wrote it diverged, or "
            "the file is damaged"
        )
    if array.dtype.itemsize == 2:
        given = given.astype(np.float32)
    return given.transpose(2, 3, 1, 0) if is_kernel else given


def _refuse_other_blocks(flat: Flat) -> None:
    """Refuses ResNeXt and wide ResNets, whose arrays have the names of a ResNet's."""
    layers = ("conv1", "res2_1/branch2a", "res2_1/branch2b")
    stem, reduced, middle = (_shape(flat, f"trunk/{layer}/kernel") for layer in layers)
    if middle and (middle[2] != middle[3] or reduced[3] != stem[3]):
        raise Refused(
            f"is a ResNeXt or a wide ResNet: its first 3x3 has {middle[3]} features of {middle[2]} "
            f"inputs, and {stem[3]} of {stem[3]} were expected"
        )


def _as_trained(convention: Convention, flat: Flat, is_known: bool, answers: Answers) -> Convention:
    """The convention with the inputs and strides that the gain of the first layer tells of. Refused
    where it does not tell, and `answers` do not either."""
    gain, why, styles = first_layer.gain(flat), None, STYLES
    usual: ReadAs = "torchvision" if convention.std_rgb else "caffe"
    seen: ReadAs = usual if gain is None else "caffe" if gain < PIXELS else "torchvision"
    if gain is not None and gain >= PIXELS and (gain <= STANDARDISED or usual == "caffe"):
        why = f"its first layer gives {gain:.2g} for noise of deviation 1"
    elif seen == "torchvision" and not is_known and gain is None:  # VGG, without batch norm
        why = "copies of Caffe's VGG-16 have the names of torchvision's"
    elif seen == "torchvision" and not is_known:
        why = "timm's resnetblur50 and resnetaa50, which are not read, have them too"
        styles = {seen: STYLES[seen]}
    if why and not answers.read_as:
        told = " or ".join(f"{style} ({inputs})" for style, inputs in styles.items())
        raise Refused(
            f"has the names of a {convention.title} file and may be another, because {why}; if "
            f"you know what it is, give convert_weights.py --read-as {told}"
        )
    style = answers.read_as or seen
    if style == usual:
        return convention
    is_vgg = convention.model["backbone"] == "vgg"
    return replace(
        convention,
        title=f"{convention.title}, inputs as {style}'s",
        mean_bgr=tables.VGG_MEAN_BGR if is_vgg else tables.TORCHVISION_MEAN_BGR,
        std_rgb=tables.TORCHVISION_STD_RGB if style == "torchvision" else None,
    )


def _folded(flat: Flat, std_rgb: tuple[float, ...] | None) -> Flat:
    """First kernel for BGR in 0..255 in place of standardised RGB; a bias before batch norm goes
    into its mean. Arrays of other shapes stay as they are: the check of shapes will say so."""
    (name,) = [n for n in flat if n in first_layer.KERNELS]
    flat = dict(flat)
    if std_rgb is not None and flat[name].shape[2] == len(std_rgb):
        kernel = flat[name].astype(np.float64) * (1 / (255 * np.array(std_rgb)))[:, None]
        flat[name] = kernel[:, :, ::-1]
    bias, mean = "trunk/conv1/conv_bias", "trunk/conv1/mean"
    if bias in flat and flat[bias].shape == flat[mean].shape:
        flat[mean] = flat[mean].astype(np.float64) - flat.pop(bias)
    return flat


def _fields(
    convention: Convention, flat: Flat, kernels: list[str], layers: Mapping[str, Layer]
) -> dict[str, Any]:
    """The fields of DeepLabV2 that the weights settle, but for the rates; `kernels` names the first
    kernel of each branch of the head."""
    is_vgg, trained = convention.model["backbone"] == "vgg", any(map(is_classifier, flat))
    blocks = {name.split("/")[1] for name in flat}
    stages = tuple(sum(b.startswith(f"res{stage}_") for b in blocks) for stage in range(2, 6))
    fields = convention.model | {
        "mean_bgr": convention.mean_bgr,
        "width": next(flat[name].shape[-1] for name in first_layer.KERNELS if name in flat),
        "stage_sizes": tables.VGG_STAGES if is_vgg else stages,
    }
    if trained:
        fields |= convention.trained
    if not kernels:
        return fields
    size, columns, _, width = flat[kernels[0]].shape
    if size != columns:
        raise Refused(
            f"has a head with {size} x {columns} taps, and a square was expected; are its axes in "
            "another order?"
        )
    fields["head_kernel_size"] = size
    if is_vgg:
        fields["head_width"] = width
    if is_vgg and trained:
        large_fov = len(kernels) == 1 and size == 3
        fields["pool5a"] = "pool5a" in layers if "pool5" in layers else large_fov
        usual = 2 if size > 3 else 3  # 2 in the first release's 4x4 and 7x7
        if (("pool1" in layers and layers["pool1"].pool_kernel_size) or usual) == 2:
            fields["alignment"] = "corners_v1"
    return fields


def _rates(dilations: list[int], kernel_size: int, path: Path, answers: Answers) -> tuple[int, ...]:
    """The rates that a file says, where 0 is none, else those of `answers`, else the paper's."""
    if all(dilations) and kernel_size > 1:
        return tuple(dilations)
    number = len(dilations)
    usual = PAPER_RATES.get((number, kernel_size))
    given = answers.aspp_rates if len(answers.aspp_rates or ()) == number else None
    if V2S.search(path.name) and given in (None, usual):
        raise Refused(
            f"is a DeepLab v2-S by its name, whose rates are others than ASPP-L's {usual} and do "
            "not stand in the file; give --aspp-rates (3 6 9 12 in kazuto1011's port)"
        )
    if (rates := given or usual) is None:
        raise Refused(
            f"has a head of {number} branches with {kernel_size} x {kernel_size} kernels and does "
            "not say their rates; give --aspp-rates"
        )
    return rates


def _thinned(flat: Flat, answers: Answers) -> Flat:
    """fc6 and fc7 of ImageNet's VGG-16 for every branch of the head: every n-th feature and tap.

    The paper keeps a random quarter of the features (Section 4.1.1).
    """
    fc6 = flat.get("head/fc6_1/kernel")
    if fc6 is None or fc6.shape[0] != FC_WINDOW or any(map(is_classifier, flat)):
        return flat
    step, rest = divmod(fc6.shape[-1], answers.head_width)
    size = answers.head_kernel_size
    if rest or not 1 < size <= FC_WINDOW:
        raise Refused(
            f"has an fc6 of {fc6.shape[-1]} features of {FC_WINDOW} x {FC_WINDOW} taps, which "
            f"cannot be thinned to {answers.head_width} of {size} x {size}"
        )
    taps = np.linspace(0, FC_WINDOW - 1, size).round().astype(int)
    thinned = {
        "head/fc6_{}/kernel": fc6[taps][:, taps][..., ::step],
        "head/fc6_{}/bias": flat["head/fc6_1/bias"][::step],
        "head/fc7_{}/kernel": flat["head/fc7_1/kernel"][:, :, ::step, ::step],
        "head/fc7_{}/bias": flat["head/fc7_1/bias"][::step],
    }
    trunk = {name: array for name, array in flat.items() if name.startswith("trunk/")}
    return trunk | {
        name.format(i + 1): array
        for i in range(len(answers.aspp_rates or PAPER_RATES[4, 3]))
        for name, array in thinned.items()
    }
