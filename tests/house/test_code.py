"""Small habits that keep the code plain and safe: names, inheritance, dynamic access, unsafe loading, masks."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import pytest

from tests.house.source import Source, calls, dotted, imports, listed, package

DRAWERS = {"util", "utils", "common", "helper", "helpers", "misc"}
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "vars", "globals", "eval", "exec", "attrgetter", "methodcaller"}
BY_NAME_ALLOWED: dict[tuple[str, str], str] = {}  # (path, name): the reason
WRITES = {
    "print",
    "click.echo",
    "click.secho",
    "sys.stdout.write",
    "sys.stderr.write",
    "warnings.warn",
    "traceback.print_exc",
}
MAY_WRITE = {
    "bridle/cli/options.py": "the one place of the command line",
    "bridle/demo/second.py": "to the first process, by Progress",
    "bridle/recipe/documents.py": "the page that `make docs` writes",
}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def nameless_files(source: Source) -> list[str]:
    parts = DRAWERS.intersection(PurePosixPath(source.path).with_suffix("").parts)
    return [source.fault(1, f"`{part}` says nothing: name the file for what is in it") for part in parts]


def access_by_name(source: Source) -> list[str]:
    return [
        source.fault(call, f"{name}(): write the attribute or the call, or make a dict where the recipe is read")
        for call in calls(source)
        for name in [dotted(call.func).removeprefix("operator.")]
        if name in BY_NAME and (source.path, name) not in BY_NAME_ALLOWED
    ]


def kwargs_passed_through(source: Source) -> list[str]:
    faults = []
    for function in ast.walk(source.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.args.kwarg:
            name = function.args.kwarg.arg
            faults += [
                source.fault(call, f"{function.name}() passes **{name} through: name the arguments")
                for call in ast.walk(function)
                if isinstance(call, ast.Call)
                for keyword in call.keywords
                if keyword.arg is None and dotted(keyword.value) == name
            ]
    return faults


def unsafe_loading(source: Source) -> list[str]:
    faults = [
        source.fault(found.line, f"{found.name}: a file that runs code when it is read; use safetensors or JSON")
        for found in imports(source)
        if found.name.split(".")[0] in UNSAFE_MODULES
    ]
    for call in calls(source):
        constants = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if dotted(call.func) == "torch.load" and constants.get("weights_only") is not True:
            faults.append(source.fault(call, "torch.load() without weights_only=True runs code from the file"))
        faults += [
            source.fault(call, f"{name}=True runs code from a file: only the user may ask for it, by name")
            for name in ("allow_pickle", "trust_remote_code")
            if constants.get(name) is True
        ]
    return faults


def masks_multiplied(source: Source) -> list[str]:
    """`mask * x`, for 0 times nan is nan. Masks of one another may be combined with `&`."""
    if not source.path.startswith("bridle/maths/"):
        return []
    faults = []
    for node in ast.walk(source.tree):
        match node:
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                factors = [left, right]
            case ast.AugAssign(op=ast.Mult(), target=target, value=value):
                factors = [target, value]
            case ast.Call(func=ast.Attribute(value=value, attr="mul" | "mul_" | "multiply"), args=args):
                factors = [value, *args]
            case _:
                continue
        if any(is_mask(factor) for factor in factors):
            faults.append(source.fault(node, "a mask as a factor: use torch.where, for 0 times nan is nan"))
    return faults


def is_mask(factor: ast.expr) -> bool:
    """`mask_BT`, `batch.mask`, `mask_BT.float()`, `mask[:, 1:]`, `~mask`; not `mask.sum()`, which is a number."""
    match factor:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return "mask" in name.lower()
        case ast.Call(
            func=ast.Attribute(value=value, attr="float" | "double" | "to" | "int" | "long" | "type_as" | "unsqueeze")
        ):
            return is_mask(value)
        case ast.Subscript(value=value) | ast.UnaryOp(operand=value):
            return is_mask(value)
        case _:
            return False


def writes_by_itself(source: Source) -> list[str]:
    """What reaches a terminal goes through one place, where nothing in it is obeyed."""
    return [
        source.fault(call, f"{name}(): say it by Progress, or by print_lines, which show what a terminal would obey")
        for call in calls(source)
        for name in [dotted(call.func)]
        if name in WRITES and source.path not in MAY_WRITE
    ]


def deep_inheritance(sources: Sequence[Source]) -> list[str]:
    """Classes of ours whose parent, of ours too, has a parent of ours; the drawn tree of errors apart."""
    ours = {
        f"{source.module}.{node.name}": (source, node, parents(source, node))
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> Iterator[str]:
        for parent in ours[name][2]:
            if parent in ours:
                yield parent
                yield from ancestors(parent)

    return [
        source.fault(
            node, f"{node.name} inherits from {' and '.join(above)}: one parent of ours is enough; pass functions"
        )
        for name, (source, node, _) in ours.items()
        for above in [list(ancestors(name))]
        if len(above) > 1 and not above[-1].startswith("bridle.core.errors.")
    ]


def parents(source: Source, node: ast.ClassDef) -> list[str]:
    """The full names of a class's bases, as far as import statements tell."""
    names = {i.name.rpartition(".")[2]: i.name for i in imports(source)}
    bases = [dotted(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
    heads = [base.partition(".") for base in bases]
    return [f"{names.get(head, f'{source.module}.{head}')}{dot}{rest}" for head, dot, rest in heads]


def deep_inheritance_of_one(source: Source) -> list[str]:
    errors = Source("bridle/core/errors.py", "class A(Exception): ...\nclass B(A): ...\nclass C(B): ...")
    return deep_inheritance([errors, Source("bridle/core/base.py", "class Base: ...\nclass Mid(Base): ..."), source])


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (access_by_name, "getattr(model, name)"),
        (access_by_name, "hasattr(model, 'head')"),
        (access_by_name, "operator.attrgetter('a.b')(x)"),
        (kwargs_passed_through, "def f(x, **kwargs):\n    return g(x, **kwargs)"),
        (writes_by_itself, "print(error)"),
        (writes_by_itself, "def f(error):\n    click.echo(f'{error}', err=True)"),
        (kwargs_passed_through, "def f(**options):\n    def inner():\n        return g(**options)"),
        (unsafe_loading, "import pickle"),
        (unsafe_loading, "def f():\n    from cloudpickle import dumps"),
        (unsafe_loading, "torch.load(path)"),
        (unsafe_loading, "torch.load(path, weights_only=False)"),
        (unsafe_loading, "np.load(path, allow_pickle=True)"),
        (unsafe_loading, "AutoModel.from_pretrained(name, trust_remote_code=True)"),
        (masks_multiplied, "loss = (mask_BT * loss_BT).sum()"),
        (masks_multiplied, "loss = loss_BT * batch.mask_BT[:, 1:].float()"),
        (masks_multiplied, "loss_BT *= mask"),
        (masks_multiplied, "loss_BT.mul(mask)"),
        (deep_inheritance_of_one, "class A: ...\nclass B(A): ...\nclass C(B): ..."),
        (deep_inheritance_of_one, "from bridle.core.base import Mid\nclass C(Mid): ..."),
        (deep_inheritance_of_one, "from bridle.core import base\nclass C(base.Mid[int]): ..."),
    ],
)
def test_a_bad_habit_is_found(check: Callable[[Source], list[str]], text: str) -> None:
    assert len(check(Source("bridle/maths/a.py", text))) == 1


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (access_by_name, "model.eval()\nobject.__setattr__(self, 'x', 1)"),
        (kwargs_passed_through, "def f(**settings):\n    return dict(settings), g(**other)"),
        (writes_by_itself, "progress.say(text)\nfile.write(text)"),
        (unsafe_loading, "torch.load(path, weights_only=True)\nnp.load(path)\nf(trust_remote_code=asked)"),
        (masks_multiplied, "torch.where(mask, a * b, 0.0) / (mask.sum() * 2)"),
        (deep_inheritance_of_one, "from bridle.core.errors import B\nclass C(B): ..."),
        (
            deep_inheritance_of_one,
            "from bridle.core.base import Base\nclass A(Base, nn.Module): ...\nclass B(nn.Module): ...",
        ),
    ],
)
def test_a_plain_habit_is_not(check: Callable[[Source], list[str]], text: str) -> None:
    assert not check(Source("bridle/maths/a.py", text))


@pytest.mark.parametrize("path", ["bridle/core/utils.py", "bridle/helpers/text.py", "bridle/common.py"])
def test_a_drawer_is_found(path: str) -> None:
    assert nameless_files(Source(path, ""))


@pytest.mark.parametrize(
    "check",
    [nameless_files, access_by_name, kwargs_passed_through, writes_by_itself, unsafe_loading, masks_multiplied],
)
def test_the_package_keeps_good_habits(check: Callable[[Source], list[str]]) -> None:
    faults = [fault for source in package() for fault in check(source)]
    assert not faults, listed(faults)


def test_inheritance_stays_shallow() -> None:
    faults = deep_inheritance(package())
    assert not faults, listed(faults)
