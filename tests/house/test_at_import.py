"""No work at import: a module's top level holds imports, constants, functions and classes, and builds values only."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.source import Source, dotted, listed, written_by_us

# Calls that only build a value. What starts with a capital is a constructor, and passes.
BUILDERS = set(
    """
    dict enumerate frozenset len list map max min range reversed round set slice sorted str sum tuple zip
    auto enum.auto field dataclasses.field namedtuple timedelta get_args typing.get_args re.compile
    math.log math.sqrt logging.getLogger mapped_column orm.mapped_column relationship orm.relationship click.option
    sa.text sa.literal_column
    """.split()
)
# Methods of constants that do no more: `"a b c".split()`, `Path(__file__).with_name("world.json")`.
METHODS = set("split join strip lower upper format encode items keys values fromkeys with_name union".split())


def builds_a_value(call: ast.Call) -> bool:
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    return last[:1].isupper() or name in BUILDERS or (isinstance(call.func, ast.Attribute) and last in METHODS)


def run_at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """What Python evaluates of a statement when the module is imported and that does more than build a value."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Assign(value=ast.Subscript(value=ast.Name(id="Annotated"))):  # a type with a name, and what checks it
            return
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return
        case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args):
            yield from working_calls(
                *args.defaults, *filter(None, args.kw_defaults), *arguments(statement.decorator_list)
            )
        case ast.ClassDef(bases=bases, keywords=keywords):
            yield from working_calls(*bases, *(k.value for k in keywords), *arguments(statement.decorator_list))
            for inner in statement.body:
                yield from run_at_import(inner)
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value) | ast.Expr(value=value):
            yield from working_calls(value)
        case ast.AnnAssign():
            return
        case _:
            yield statement


def arguments(decorators: list[ast.expr]) -> Iterator[ast.expr]:
    """A decorator may be called, for that is how frameworks are told; its arguments are values like any other."""
    for decorator in decorators:
        if isinstance(decorator, ast.Call):
            yield from decorator.args
            yield from (keyword.value for keyword in decorator.keywords)


def working_calls(*values: ast.AST) -> Iterator[ast.Call]:
    """Calls that are run where they stand; those inside a lambda wait until it is called."""
    for value in values:
        if isinstance(value, ast.Lambda):
            continue
        if isinstance(value, ast.Call) and not builds_a_value(value):
            yield value
        yield from working_calls(*ast.iter_child_nodes(value))


def work_at_import(source: Source) -> list[str]:
    return [
        source.fault(node, f"work at import: {ast.unparse(node).splitlines()[0][:60]}")
        for statement in source.tree.body
        for node in run_at_import(statement)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "print('hello')",
        "RECIPE = open('recipe.toml').read()",
        "WORDS = Path('words.txt').read_text()",
        "torch.set_num_threads(2)",
        "for name in NAMES:\n    REGISTRY[name] = 1",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "def f(now=time.time()): ...",
        "class A:\n    rng = numpy.random.default_rng(0)",
        "@register(load('x'))\ndef f(): ...",
        "Thread(target=f).start()",
        "if sys.platform == 'linux':\n    X = 1",
    ],
)
def test_work_at_import_is_found(text: str) -> None:
    assert work_at_import(Source("bridle/core/a.py", text))


@pytest.mark.parametrize(
    "text",
    [
        '"""What it is."""\nfrom typing import TypeVar\nT = TypeVar("T")\nX: int = 3\nY: str',
        "WORD = re.compile(r'a+')\nWORDS = frozenset('a b'.split())\nWORLD = Path(__file__).with_name('world.json')",
        "if TYPE_CHECKING:\n    import httpx2",
        "if __name__ == '__main__':\n    main()",
        "@dataclass(frozen=True)\nclass A:\n    '''Doc.'''\n    x: list = field(default_factory=list)",
        "class A:\n    def f(self): work()",
        "@click.option('--seed', type=click.IntRange(0))\ndef f(): work()",
        "KEY = lambda row: work(row)",
        "KEYS = [('a', lambda row: work(row))]",
        "Slot = Annotated[str, holds('thing')]",
    ],
)
def test_building_values_is_not(text: str) -> None:
    assert not work_at_import(Source("bridle/core/a.py", text))


def test_no_work_at_import() -> None:
    faults = [fault for source in written_by_us() for fault in work_at_import(source)]
    assert not faults, listed(faults)
