"""Weights of any known file as arrays under our names, and a header that says what they expect.

The header has `model` (the fields of DeepLabV2 that the weights settle), `class_names` (empty
where the file has no last layer for segmentation), `source` (file, its SHA-256, convention, what
it was trained on) and `skipped` (reason -> names that were not used). Where some branches of the
head were never trained, `untrained_branches` counts them from 0; see branches.py.

`inputs` are always BGR in 0..255 less the model's `mean_bgr`. Where the source expects RGB / 255
divided by a standard deviation, its first kernel takes up the order and the factor, which is
exact; the mean is carried, because the padding that a shifted input would need is not zero.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from deeplab_jax.types import VOC_CLASS_NAMES, UserError
from deeplab_jax.weights import (
    archives,
    branches,
    caffemodel,
    files,
    first_layer,
    pth,
    published,
    refusals,
    tables,
)
from deeplab_jax.weights.files import Flat
from deeplab_jax.weights.tables import Convention, Place, Table

Header = dict[str, Any]
Layers = Mapping[str, caffemodel.Layer]
"""The layers of a .caffemodel by name; empty for other formats."""

PAPER_RATES = {
    (4, 3): (6, 12, 18, 24),
    (1, 3): (12,),
    (1, 1): (1,),
    (1, 4): (4,),
    (1, 7): (4,),
}
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

HEAD_LAYER = re.compile(r"(fc6(_\d)?|fc1_(?!\w*_res0)\w+_c\d)$")


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
    """None: not said. The paper's are taken then."""
    head_kernel_size: int = 3
    """What VGG's fc6 of ImageNet is thinned to, and ..."""
    head_width: int = 1024
    """... what its fc6 and fc7 are."""
    read_as: ReadAs | None = None
    """The inputs and strides of a network with the names of torchvision; None: recognised."""
    scales: tuple[float, ...] | None = None
    """Of the inputs, that the scores are fused over."""


def read(path: Path, *, answers: Answers | None = None) -> tuple[Flat, Header]:
    """Arrays by our names, and the header; float64 where arithmetic was due, else as in the file.

    A path may be that of a zip with one weight file in it, or ZIP/NAME.

    Raises:
      UserError: an unknown or damaged file, names, shapes or numbers that no table explains, or a
        question that the file leaves open.
    """
    with archives.unpacked(Path(path)) as found:
        return _read(found, answers or Answers())


def _read(path: Path, answers: Answers) -> tuple[Flat, Header]:
    metadata = files.metadata(path)
    if files.HEADER in metadata:
        return files.read(path)
    given, layers = _open(path)
    given, of_loss = _without_loss(given)
    match = _recognise(path, _without_wrappers(given))
    flat = {
        place.name: to_ours(path, name, match.used[name], place)
        for name, place in match.table.items()
    }
    _refuse_other_blocks(path, flat)
    digest, told = sha256(path), files.exported(metadata)
    convention = match.convention
    if not told:
        convention = _as_trained(path, convention, flat, digest, answers)
    flat = _fold_bias(_fold_colours(flat, convention.std_rgb))
    flat, model = _describe(path, flat, layers, answers)
    fields = {**convention.model, "mean_bgr": convention.mean_bgr}
    if any(files.is_classifier(name) for name in flat):
        fields |= convention.trained
    fields |= model
    if fields.get("scales", ()) is None and not told:
        fields["scales"] = answers.scales or _ask_for_scales(path)
    known = published.find(path.name, digest, fields["backbone"])
    header = {
        "model": fields,
        "class_names": class_names(flat),
        "channel_order": "BGR",
        "source": {
            "file": path.name,
            "sha256": digest,
            "convention": convention.title,
            "trained_on": known.trained_on if known else None,
        },
        "skipped": match.skipped | ({LOSS_REASON: of_loss} if of_loss else {}),
    }
    if not told and (untrained := branches.untrained(flat)):
        header["untrained_branches"] = untrained
    return flat, header | told


def class_names(flat: Flat) -> tuple[str, ...]:
    """PASCAL VOC's for 21 classes, else numbers; empty where there is no last layer."""
    biases = [array for name, array in flat.items() if name.endswith("/fc8_1/bias")]
    number = len(biases[0]) if biases else 0
    if number == len(VOC_CLASS_NAMES):
        return VOC_CLASS_NAMES
    return tuple(f"class {i}" for i in range(number))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of ZIP/NAME, as 64 hexadecimal digits."""
    with archives.unpacked(path) as found, open(found, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> tuple[dict[str, np.ndarray], Layers]:
    """Arrays by the source's names, and the layers that a .caffemodel lists."""
    try:
        with open(path, "rb") as file:
            start = file.read(refusals.START)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    # Before the pickles: the length that a safetensors file begins with may begin with \x80 too.
    if start[5:9] == b"\0\0\0{":  # the length of the header, eight bytes, and the header
        return files.read_safetensors(path), {}
    if told := refusals.describe(path, start):
        raise UserError(f"{path} {told}")
    if start[:4] == b"PK\x03\x04":
        is_npz = {Path(name).suffix for name in archives.names_in(path)} == {".npy"}
        return (files.read_npz if is_npz else pth.read)(path), {}
    if start[:1] == b"\x80":
        return pth.read(path), {}
    if start[:1] in (b"\x0a", b"\x12", b"\xa2"):  # name, layers or layer of a NetParameter
        layers = caffemodel.read(path)
        return caffemodel.named_arrays(path, layers), {layer.name: layer for layer in layers}
    raise UserError(
        f"{path} starts like none of the files that hold weights (.caffemodel, .pth, "
        ".safetensors, .npz); is the download complete?"
    )


def _without_loss(given: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays without those of a loss that was saved as part of the network, and their names."""
    of_loss = [name for name, array in given.items() if array.ndim == 1 and LOSS.match(name)]
    return {name: array for name, array in given.items() if name not in of_loss}, of_loss


def _without_wrappers(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names without the prefixes of WRAPPERS that all of them have."""
    given = dict(given)
    while given:
        shared = [p for p in WRAPPERS if all(name.startswith(p) for name in given)]
        if not shared:
            break
        given = {name.removeprefix(shared[0]): array for name, array in given.items()}
    return given


@dataclass(frozen=True)
class _Match:
    """A convention that explains a file: its table, and what of the file it uses and skips."""

    convention: Convention
    table: Table
    used: dict[str, np.ndarray]
    skipped: dict[str, list[str]]
    strangers: list[str]
    """Names without the convention's prefix."""

    @property
    def explained(self) -> int:
        """Names that the convention uses or skips; 0 where it uses none."""
        used = len(self.table.keys() & self.used.keys())
        return used and used + sum(map(len, self.skipped.values()))


def _recognise(path: Path, given: Mapping[str, np.ndarray]) -> _Match:
    """The convention that explains most names.

    Raises:
      UserError: none does, or names are left over on either side.
    """
    best = max(
        (_match(convention, given) for convention in tables.CONVENTIONS),
        key=lambda match: match.explained,
    )
    if not best.explained:
        raise UserError(
            f"{path} names its weights in no way that is known, e.g. "
            f"{min(given, default='')[:60]!r}; a DeepLab v2 of Caffe or PyTorch, or Caffe's or "
            "torchvision's ResNet-50, -101, -152 or VGG-16 was expected"
        )
    if reason := best.convention.refused({name: array.shape for name, array in given.items()}):
        raise UserError(f"{path} {reason}")
    _refuse_leftovers(path, best)
    return best


def _match(convention: Convention, given: Mapping[str, np.ndarray]) -> _Match:
    prefix, used, skipped, strangers = convention.prefix, {}, {}, []
    for full_name, array in given.items():
        name = full_name.removeprefix(prefix)
        reason = _reason(convention, name)
        if not full_name.startswith(prefix):
            strangers.append(full_name)
        elif reason is not None:
            skipped.setdefault(reason, []).append(name)
        else:
            used[name] = array
    table = convention.table({name: array.shape for name, array in used.items()})
    return _Match(convention, table, used, skipped, strangers)


def _reason(convention: Convention, name: str) -> str | None:
    return next((why for what, why in convention.skipped.items() if re.match(what, name)), None)


def _refuse_leftovers(path: Path, match: _Match) -> None:
    unknown = match.strangers + sorted(match.used.keys() - match.table.keys())
    missing = sorted(match.table.keys() - match.used.keys())
    title = match.convention.title
    if unknown:
        also = f", and lacks {_listed(missing)}" if missing else ""
        raise UserError(
            f"{path} holds {_listed(unknown)}, for which a {title} file has no place{also}; "
            "is a layer renamed?"
        )
    if missing:
        raise UserError(
            f"{path} lacks {_listed(missing)} of a {title} file; is it the whole network?"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def to_ours(path: Path, name: str, array: np.ndarray, place: Place) -> np.ndarray:
    """`array` with its axes in our order: kernels `[rows, columns, in, features]`, a view."""
    given, order = array, place.order
    if place.order == "oi" and array.ndim == 2:
        given, order = array[:, :, None, None], "oihw"
    elif place.order == "o(ihw)" and array.ndim == 2 and array.shape[1] % FC_WINDOW**2 == 0:
        given, order = array.reshape(array.shape[0], -1, FC_WINDOW, FC_WINDOW), "oihw"
    real = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    if not real or not array.size or given.ndim != len(order):
        raise UserError(
            f"{path}: {name} is {array.dtype} of shape {array.shape}, and floating-point "
            f"numbers with the axes {place.order} were expected; is the file converted already?"
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"{path}: {name} holds numbers that are not finite; the training that wrote it "
            "diverged, or the file is damaged"
        )
    if array.dtype.itemsize == 2:
        given = given.astype(np.float32)
    return given if order == "c" else given.transpose([order.index(axis) for axis in "hwio"])


def _refuse_other_blocks(path: Path, flat: Flat) -> None:
    """Refuses ResNeXt and wide ResNets, whose arrays have the names of a ResNet's."""
    layers = ("conv1", "res2_1/branch2a", "res2_1/branch2b")
    shapes = [np.shape(flat.get(f"trunk/{layer}/kernel", ())) for layer in layers]
    if any(len(shape) != 4 for shape in shapes):
        return
    stem, reduced, (_, _, inputs, features) = shapes
    if inputs != features or reduced[-1] != stem[-1]:
        raise UserError(
            f"{path} is a ResNeXt or a wide ResNet: the 3x3 of its first block has {features} "
            f"features of {inputs} inputs, and {stem[-1]} of {stem[-1]} were expected"
        )


def _as_trained(
    path: Path, convention: Convention, flat: Flat, digest: str, answers: Answers
) -> Convention:
    """The convention with the inputs and strides that the network was trained with.

    Raises:
      UserError: they are not known, and `answers` do not say them.
    """
    usual: ReadAs = "torchvision" if convention.std_rgb else "caffe"
    style = answers.read_as or _style(path, convention, usual, flat, digest)
    if style == usual:
        return convention
    is_vgg, model = convention.model["backbone"] == "vgg", dict(convention.model)
    if not is_vgg:
        model["stride_placement"] = "torch" if style == "torchvision" else "caffe"
    return replace(
        convention,
        title=f"{convention.title}, inputs as {style}'s",
        model=model,
        mean_bgr=tables.VGG_MEAN_BGR if is_vgg else tables.TORCHVISION_MEAN_BGR,
        std_rgb=tables.TORCHVISION_STD_RGB if style == "torchvision" else None,
    )


def _style(path: Path, convention: Convention, usual: ReadAs, flat: Flat, digest: str) -> ReadAs:
    of_torchvision = convention in (tables.TORCHVISION_RESNET, tables.TORCHVISION_VGG)
    published_as = PLAIN.match(path.name)
    known = published.find(path.name, digest, convention.model["backbone"])
    known = known is not None and known.sha256 is not None
    known = known or published_as is not None and digest.startswith(published_as[2])
    gain = first_layer.gain(flat)
    if gain is None:  # VGG has no batch norm that tells
        if of_torchvision and not known:
            raise UserError(
                f"{path} may be torchvision's VGG-16 or a copy of Caffe's, whose names are the "
                f"same; {_ask(STYLES)}"
            )
        return usual
    seen = "caffe" if gain < PIXELS else "torchvision" if gain > STANDARDISED else None
    if seen is None or seen != usual and not of_torchvision:
        raise UserError(
            f"{path}: the first layer of this {convention.title} file is not made for "
            f"{STYLES[usual]} (it gives {gain:.2g} for noise of deviation 1); {_ask(STYLES)}"
        )
    if seen == "torchvision" and not known:
        raise UserError(
            f"{path} has the names of torchvision's ResNet, which timm's resnetblur50 and "
            "resnetaa50 have too, whose pools are others and are not read here; if it is a plain "
            f"one, {_ask(['torchvision'])}"
        )
    return seen


def _ask(styles: Iterable[ReadAs]) -> str:
    told = " or ".join(f"{style} ({STYLES[style]})" for style in styles)
    return f"convert it with convert_weights.py --read-as {told}"


def _ask_for_scales(path: Path) -> NoReturn:
    raise UserError(
        f"{path} does not say whether its scores are fused over several scales of the input: "
        "convert it with convert_weights.py --scales 1.0, or --scales 1.0 0.75 0.5 where it was "
        "wrapped in that port's MSC"
    )


def _fold_colours(flat: Flat, std_rgb: tuple[float, ...] | None) -> Flat:
    """First kernel for BGR in 0..255 instead of standardised RGB."""
    if std_rgb is None:
        return flat
    (name,) = [n for n in flat if n in first_layer.KERNELS]
    factor = 1 / (255 * np.array(std_rgb))
    kernel = flat[name].astype(np.float64)
    if kernel.shape[2] == len(factor):  # else the check of shapes will say so
        kernel = (kernel * factor[:, None])[:, :, ::-1]
    return flat | {name: kernel}


def _fold_bias(flat: Flat) -> Flat:
    """A bias before the first batch norm goes into its mean."""
    bias, mean = "trunk/conv1/conv_bias", "trunk/conv1/mean"
    if bias not in flat or flat[bias].shape != flat[mean].shape:  # the check of shapes will say so
        return flat
    others = {name: array for name, array in flat.items() if name != bias}
    return others | {mean: flat[mean].astype(np.float64) - flat[bias]}


def _describe(
    path: Path, flat: Flat, layers: Layers, answers: Answers
) -> tuple[Flat, dict[str, Any]]:
    """The arrays with VGG's head thinned where it is ImageNet's, and the fields they settle."""
    resnet = "trunk/conv1/kernel" in flat
    trained = any(files.is_classifier(name) for name in flat)
    first = flat["trunk/conv1/kernel" if resnet else "trunk/conv1_1/kernel"]
    blocks = {name.split("/")[1] for name in flat}
    stages = tuple(sum(b.startswith(f"res{stage}_") for b in blocks) for stage in range(2, 6))
    model: dict[str, Any] = {
        "width": first.shape[-1],
        "stage_sizes": stages if resnet else tables.VGG_STAGES,
    }
    fc6 = flat.get("head/fc6_1/kernel")
    if not trained and fc6 is not None and fc6.shape[0] == FC_WINDOW:
        flat = thin(path, flat, answers)
    outer = "head/fc8_" if resnet else "head/fc6_"
    number = len({name.split("/")[1] for name in flat if name.startswith(outer)})
    if not number:
        return flat, model
    kernel = flat[f"{outer}1/kernel"]
    if kernel.shape[0] != kernel.shape[1]:
        raise UserError(
            f"{path}: the head's first kernel has {kernel.shape[0]} x {kernel.shape[1]} taps, and "
            "a square was expected; are its axes in another order?"
        )
    model["head_kernel_size"] = kernel.shape[0]
    model["aspp_rates"] = _rates(path, number, kernel.shape[0], layers, answers)
    if not resnet:
        model["head_width"] = kernel.shape[-1]
    if not resnet and trained:
        large_fov = number == 1 and kernel.shape[0] == 3
        model["pool5a"] = "pool5a" in layers if "pool5" in layers else large_fov
        usual = 2 if kernel.shape[0] > 3 else 3  # 2 in the first release's 4x4 and 7x7
        if (("pool1" in layers and layers["pool1"].pool_kernel_size) or usual) == 2:
            model["alignment"] = "corners_v1"
    return flat, model


def _rates(
    path: Path, number: int, kernel_size: int, layers: Layers, answers: Answers
) -> tuple[int, ...]:
    said = (layers[name].dilation for name in sorted(layers) if HEAD_LAYER.match(name))
    told = tuple(dilation for dilation in said if dilation)
    if len(told) == number and kernel_size > 1:
        return told
    rates = PAPER_RATES.get((number, kernel_size))
    given = answers.aspp_rates if answers.aspp_rates and len(answers.aspp_rates) == number else None
    if V2S.search(path.name) and given in (None, rates):
        raise UserError(
            f"{path} is a DeepLab v2-S by its name, whose rates are others than ASPP-L's {rates} "
            "and do not stand in the file; give --aspp-rates (3 6 9 12 in kazuto1011's port)"
        )
    chosen = given or rates
    if chosen is None:
        raise UserError(
            f"{path} has a head of {number} branches with {kernel_size} x {kernel_size} kernels "
            "and does not say their rates; give --aspp-rates"
        )
    return chosen


def thin(path: Path, flat: Flat, answers: Answers) -> Flat:
    """fc6 and fc7 of ImageNet's VGG-16 for every branch of the head: every n-th feature and tap.

    The paper keeps a random quarter of the features (Section 4.1), which is unpublished.
    """
    fc6, fc7 = flat["head/fc6_1/kernel"], flat["head/fc7_1/kernel"]
    step, rest = divmod(fc6.shape[-1], answers.head_width)
    size = answers.head_kernel_size
    if rest or not 1 < size <= FC_WINDOW:
        raise UserError(
            f"{path}: fc6 has {fc6.shape[-1]} features of {FC_WINDOW} x {FC_WINDOW} taps, which "
            f"cannot be thinned to {answers.head_width} of {size} x {size}"
        )
    taps = np.linspace(0, FC_WINDOW - 1, size).round().astype(int)
    thinned = {
        "fc6_{}/kernel": fc6[taps][:, taps][..., ::step],
        "fc6_{}/bias": flat["head/fc6_1/bias"][::step],
        "fc7_{}/kernel": fc7[:, :, ::step, ::step],
        "fc7_{}/bias": flat["head/fc7_1/bias"][::step],
    }
    trunk = {name: array for name, array in flat.items() if name.startswith("trunk/")}
    return trunk | {
        "head/" + name.format(i + 1): array
        for i in range(len(answers.aspp_rates or PAPER_RATES[4, 3]))
        for name, array in thinned.items()
    }
