"""The tensors, dictionaries and lists of a PyTorch pickle, read without running any of it.

Python's own unpickler imports and calls whatever the file names. This one builds tensors, plain
values and containers. A value of any other class, such as the argparse.Namespace or the NumPy
scalar that a training script saves beside its weights, becomes an `Opaque`: its class is never
imported and its arguments are dropped. What is built is bounded by the number of operations and
the length of the pickle.
"""

import io
import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_BYTES = 8 * 2**20
MAX_OPERATIONS = 200_000
"""A ResNet-101 takes about 25,000, and 300 kB."""

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Refused(ValueError):
    """The pickle names what is no tensor, or is damaged; the message says which."""


class Storage(NamedTuple):
    """A run of numbers elsewhere in the file."""

    dtype: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Global(NamedTuple):
    """A name in the file that stands for one of the constructions below."""

    name: str


class Opaque(NamedTuple):
    """A value of a class that is not read; `name` is "module class"."""

    name: str

    def __str__(self) -> str:
        return self.name.replace(" ", ".")[:80]


def load(file: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """The object whose pickle starts where `file` stands; leaves it behind the pickle.

    `storages` receives by key every storage that the pickle names.

    Raises:
      Refused
    """
    machine = _Machine({} if storages is None else storages)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number == MAX_OPERATIONS:
                raise Refused(f"it takes more than {MAX_OPERATIONS} operations")
            if opcode.name == "STOP":
                return machine.pop()
            machine.do(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError):
        # Whatever goes wrong inside is the pickle's doing: a stack too short, a name never
        # stored, a number where a tuple belongs.
        raise Refused("its pickle is damaged") from None
    raise Refused("its pickle does not end")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, storages: dict[str, Storage]):
        self.storages = storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        if name in PLAIN:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in PUT:
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in GET:
            self.stack.append(self.memo[int(argument)])
        elif name not in IGNORED:
            operation = OPERATIONS.get(name)
            if operation is None:
                raise Refused(f"its pickle has the operation {name}, which no tensor needs")
            operation(self, argument)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self, _) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def make_tuple(self, _) -> None:
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def make_list(self, _) -> None:
        items = self.pop_to_mark()
        self.stack.append(items)

    def make_dict(self, _) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self._set(items)

    def append(self, _) -> None:
        self._extend([self.pop()])

    def appends(self, _) -> None:
        self._extend(self.pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not Opaque:
            list.extend(self.stack[-1], items)

    def empty_set(self, _) -> None:
        self.stack.append(Opaque("builtins set"))

    def add_items(self, _) -> None:
        self.pop_to_mark()
        _require(type(self.stack[-1]) is Opaque)

    def frozen_set(self, _) -> None:
        self.pop_to_mark()
        self.stack.append(Opaque("builtins frozenset"))

    def set_item(self, _) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _) -> None:
        self._set(self.pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        _require(len(items) % 2 == 0)
        if type(self.stack[-1]) is Opaque:
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) in NEVER_NAMES:
                continue
            _require(_is_key(key))  # a nested tuple can take for ever to hash
            dict.__setitem__(self.stack[-1], key, value)

    def global_name(self, argument: str | None) -> None:
        if argument is None:
            name, module = self.pop(), self.pop()
            _require(type(name) is str and type(module) is str)
            argument = f"{module} {name}"
        self.stack.append(Global(argument) if argument in GLOBALS else Opaque(argument))

    def persistent(self, _) -> None:
        kind, storage, key, _, size, *view = self.pop()
        if type(storage) is Opaque:
            self.stack.append(storage)
            return
        _require(kind == "storage" and type(storage) is Global and _is_key(key))
        _require(_is_size(size) and (not view or view[0] is None))
        found = Storage(STORAGES[storage.name.split()[-1]], str(key), size)
        _require(self.storages.setdefault(found.key, found) == found)
        self.stack.append(found)

    def reduce(self, _) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(_construct(function, arguments))

    def new_object(self, _) -> None:
        arguments, kind = self.pop(), self.pop()
        _require(type(kind) is Opaque and type(arguments) is tuple)
        self.stack.append(kind)

    def new_object_with_names(self, _) -> None:
        _, arguments, kind = self.pop(), self.pop(), self.pop()
        _require(type(kind) is Opaque and type(arguments) is tuple)
        self.stack.append(kind)

    def instance(self, argument: str) -> None:
        """INST of protocol 0: the name stands in the operation, the arguments on the stack."""
        arguments = tuple(self.pop_to_mark())
        self.global_name(argument)
        self.stack.append(_construct(self.pop(), arguments))

    def object(self, _) -> None:
        """OBJ of protocol 1: class and arguments behind a mark."""
        kind, *arguments = self.pop_to_mark()
        self.stack.append(_construct(kind, tuple(arguments)))

    def build(self, _) -> None:
        """Attributes of a dictionary (`_metadata`) and of an opaque value are dropped."""
        self.pop()
        _require(type(self.stack[-1]) in (dict, Opaque))


def _require(condition: bool) -> None:
    if not condition:
        raise Refused("its pickle is damaged")


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**48


def _is_key(value: Any) -> bool:
    return type(value) is str or _is_size(value)


def _make_dict(pairs: list | tuple = ()) -> dict:
    _require(all(type(pair) in (list, tuple) and _is_key(pair[0]) for pair in pairs))
    return {key: value for key, value in pairs}


def _construct(function: Any, arguments: Any) -> Any:
    """What a call of the pickle builds; a call of anything unknown, or on it, builds nothing."""
    _require(type(function) in (Global, Opaque) and type(arguments) is tuple)
    if type(function) is Opaque:
        return function
    return GLOBALS[function.name](*arguments)


def _make_tensor(storage, offset, shape, strides, *_) -> Tensor | Opaque:
    if type(storage) is Opaque:
        return storage
    numbers = [offset, *shape, *strides]
    _require(type(storage) is Storage and len(shape) == len(strides) <= 8)
    _require(all(_is_size(number) for number in numbers))
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _make_parameter(tensor, *_) -> Tensor | Opaque:
    _require(type(tensor) in (Tensor, Opaque))
    return tensor


def _refuse_call(*_) -> None:
    _require(False)


GLOBALS: Mapping[str, Any] = {
    "collections OrderedDict": _make_dict,
    "torch._utils _rebuild_tensor": _make_tensor,
    "torch._utils _rebuild_tensor_v2": _make_tensor,
    "torch._utils _rebuild_parameter": _make_parameter,
    **{f"torch {name}": _refuse_call for name in STORAGES},
}

PLAIN = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
IGNORED = frozenset(("PROTO", "FRAME"))
NEVER_NAMES = frozenset((Global, Opaque, type(None), float, bool))
"""Types of keys under which no weights stand: their entries are left out."""


def _tuple_of(number: int):
    def operation(machine: _Machine, _) -> None:
        items = [machine.pop() for _ in range(number)]
        machine.stack.append(tuple(items[::-1]))

    return operation


OPERATIONS = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.global_name,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_names,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "EMPTY_SET": _Machine.empty_set,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "BUILD": _Machine.build,
}
