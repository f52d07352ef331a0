"""Rules written as formulas: `{chosen: "beta * sigmoid(-beta * D)", rejected: "…", beta: 0.1}`.

A formula is an expression of numbers: + - * / **, comparisons, and, or, not, and the functions of FUNCTIONS. Its names
are the quantities that a rule can ask for, one number a row, the short symbols of SYMBOLS, and the rule's own
constants. It is parsed by Python's grammar and walked by this module: nothing else in it is ever run.
"""

import ast
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_data.rules.batch import PairWeights, counted_by, quantities
from rlhf_data.words import hint

if TYPE_CHECKING:
    from torch import Tensor

SYMBOLS: dict[str, dict[str, str]] = {
    "paired": {
        "c": "policy_chosen_logps",
        "r": "policy_rejected_logps",
        "c0": "ref_chosen_logps",
        "r0": "ref_rejected_logps",
        "a": "chosen_log_ratio",
        "d": "rejected_log_ratio",
        "D": "log_ratio_margin",
        "n_plus": "chosen_n_tokens",
        "n_minus": "rejected_n_tokens",
        "p": "preference",
        "m": "margin",
    },
    "unpaired": {
        "c": "policy_logps",
        "c0": "ref_logps",
        "a": "log_ratio",
        "n": "n_tokens",
        "R": "reward",
    },
}
_CONDITIONS = {"label"}
_LONGEST = 2000  # characters: a formula that anyone reads is shorter

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
# How what the grammar lets through, and a formula may not hold, is better said.
_INSTEAD = {
    ast.IfExp: "write where(condition, x, y)",
    ast.BitAnd: "write and",
    ast.BitOr: "write or",
    ast.BitXor: "write ** for a power",
    ast.Invert: "write not",
    ast.Attribute: "quantities have no parts",
    ast.Subscript: "a formula speaks of one row at a time",
}


class Written(NamedTuple):
    """A formula's rule: its table, and functions with the signatures of rules; `loss` only where one is written."""

    table: str
    weigh: Callable[..., Any]
    loss: Callable[..., Any] | None


def written(parts: Mapping[str, Any]) -> Written:
    """The rule of `{chosen, rejected}` or `{completion}`, an optional `loss` for reports, and constants.

    Raises:
        ValueError: what is wrong, with the formula and a line that points at the place.

    >>> import torch
    >>> rule = written({"completion": "R - baseline", "baseline": 0.5}).weigh
    >>> rule(torch.tensor([1.0, 0.0]), baseline=0.5)
    tensor([ 0.5000, -0.5000])
    """
    table = "unpaired" if "completion" in parts else "paired"
    sides = ("completion",) if table == "unpaired" else ("chosen", "rejected")
    if missing := [side for side in sides if side not in parts]:
        raise ValueError(f"the formula of {missing[0]} is missing: a rule over pairs has chosen and rejected")
    if extra := [side for side in ("chosen", "rejected") if side in parts and side not in sides]:
        raise ValueError(f"a rule has either completion, or chosen and rejected; it has completion and {extra[0]}")
    texts = {key: _text(key, parts[key]) for key in (*sides, "loss") if key in parts}
    constants = {name: _constant(name, value, table) for name, value in parts.items() if name not in texts}
    trees = {key: _Formula(key, text, table, constants) for key, text in texts.items()}
    used = {name for tree in trees.values() for name in tree.constants}
    if idle := [name for name in constants if name not in used]:
        raise ValueError(f"{idle[0]} stands in no formula of this rule: leave it out, or use it")
    weigh = _function([trees[side] for side in sides], table, constants)
    return Written(table, weigh, _function([trees["loss"]], table, constants) if "loss" in trees else None)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key} is {value!r}: write a formula, such as beta * sigmoid(-beta * log_ratio_margin)")
    text = " ".join(str(value).split())
    if not text or len(text) > _LONGEST:
        raise ValueError(f"{key} is {'empty' if not text else f'longer than {_LONGEST} characters'}: write a formula")
    return text


def _constant(name: str, value: Any, table: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}: a constant of a formula is a finite number")
    if not name.isidentifier() or name in (*FUNCTIONS, "and", "or", "not", "weight"):
        raise ValueError(f"{name!r} is no name for a constant: use letters, digits and _")
    if name in SYMBOLS[table] or name in quantities(table):
        raise ValueError(f"{name} is a quantity of the {table} table: give the constant another name")
    return value


def _function(trees: "list[_Formula]", table: str, constants: Mapping[str, float]) -> Callable[..., Any]:
    """A function with a rule's signature: the quantities that the formulas name, then their constants."""
    names = list(dict.fromkeys(name for tree in trees for name in tree.quantities))
    # Where a formula names no quantity at all, the lengths say how many rows there are.
    counted = names or (["chosen_n_tokens"] if table == "paired" else ["n_tokens"])

    def evaluate(*given: "Tensor", **values: float) -> Any:
        measured = dict(zip(counted, given, strict=True))
        numbers = {name: _number(name, value) for name, value in measured.items()}
        ones = (given[0] == given[0]).double() if names else (given[0] > 0).double()
        results = [tree.value(numbers, {**constants, **values}) for tree in trees]
        results = [result if hasattr(result, "shape") else ones * result for result in results]
        return PairWeights(*results) if len(results) == 2 else results[0]

    keyword = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=float)
        for name, value in constants.items()
    ]
    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in counted]
    annotation = PairWeights if len(trees) == 2 else "Tensor"
    evaluate.__signature__ = inspect.Signature([*positional, *keyword], return_annotation=annotation)  # type: ignore[attr-defined]
    evaluate.__name__ = "the formula"
    return evaluate


def _number(name: str, value: "Tensor") -> "Tensor":
    # A count of tokens divides as a float64: 1/n of an integer would be a float32.
    return value if name in _CONDITIONS or value.is_floating_point() else value.double()


class _Formula:
    """One expression: checked when it is made, evaluated as often as asked."""

    def __init__(self, key: str, text: str, table: str, constants: Mapping[str, float]) -> None:
        self.key, self.text, self.table = key, text, table
        self.quantities: list[str] = []
        self.constants: set[str] = set()
        self._known = {name: name for name in quantities(table) if counted_by(name) == "row"} | SYMBOLS[table]
        for unfit in ("weight", "group"):
            self._known.pop(unfit, None)
        try:
            self._root = ast.parse(text, mode="eval").body
            kind = self._check(self._root, constants)
        except SyntaxError as error:
            at = error.offset - 1 if error.offset else len(text)  # without an offset, something is missing at the end
            raise self._wrong(f"is no formula: {error.msg}", at, 1) from error
        except (RecursionError, MemoryError) as error:
            raise ValueError(f"{key} is nested too deeply: write a shorter formula") from error
        if kind == "condition":
            raise self._at(self._root, "says true or false where a number is wanted; write where(condition, x, y)")

    def value(self, measured: "Mapping[str, Tensor]", constants: Mapping[str, float]) -> Any:
        """A tensor of one number a row, or a float where no quantity is named."""
        return self._value(self._root, measured, constants)

    def _check(self, node: ast.expr, constants: Mapping[str, float]) -> str:
        """Whether a node is a "number" or a "condition"; ValueError where it, or a part of it, has no place there."""
        kind = self._kind(node, constants)
        named = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if not named & self._known.keys():
            self._value(node, {}, constants)  # what can be computed now fails now
        return kind

    def _kind(self, node: ast.expr, constants: Mapping[str, float]) -> str:
        match node:
            case ast.Constant(value=bool()) | ast.Constant(value=complex()):
                raise self._at(node, "is no number")
            case ast.Constant(value=int() | float()):
                return "number"
            case ast.Name(id=name):
                return self._name(node, name, constants)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                self._want("number", constants, left, right)
                return "number"
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._want("number", constants, operand)
                return "number"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._want("condition", constants, operand)
                return "condition"
            case ast.BoolOp(values=values):
                self._want("condition", constants, *values)
                return "condition"
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                self._want("number", constants, left, *others)
                return "condition"
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                least, most, _ = FUNCTIONS[name]
                if not least <= len(arguments) <= most:
                    wanted = str(least) if least == most else f"{least} or more"
                    raise self._at(node, f"{name} takes {wanted} arguments, not {len(arguments)}")
                conditions = arguments[:1] if name == "where" else []
                self._want("condition", constants, *conditions)
                self._want("number", constants, *arguments[len(conditions) :])
                return "number"
            case ast.Call(func=ast.Name(id=name)):
                if name in FUNCTIONS:
                    raise self._at(node, f"the arguments of {name} have no names")
                raise self._at(node.func, f"no function {name!r}{hint(name, FUNCTIONS, ': ')}")
        operation = getattr(node, "op", node)
        instead = _INSTEAD.get(
            type(operation), f"known are + - * / **, comparisons, and, or, not, {', '.join(FUNCTIONS)}"
        )
        raise self._at(node, f"has no place in a formula; {instead}")

    def _name(self, node: ast.expr, name: str, constants: Mapping[str, float]) -> str:
        if name in constants:
            self.constants.add(name)
            return "number"
        if name in self._known:
            if self._known[name] not in self.quantities:
                self.quantities.append(self._known[name])
            return "condition" if self._known[name] in _CONDITIONS else "number"
        if name == "weight":
            raise self._at(node, "the row's weight multiplies the loss of every rule already; leave it out")
        if name in FUNCTIONS:
            raise self._at(node, f"{name} is a function: write {name}(…)")
        elsewhere = "unpaired" if self.table == "paired" else "paired"
        if name in quantities(elsewhere) or name in SYMBOLS[elsewhere]:
            raise self._at(
                node, f"{name} is a quantity of the {elsewhere} table, and this rule is over {self.table} rows"
            )
        if name in quantities(self.table):
            raise self._at(node, f"{name} is not one number a row of its own; write a rule in Python for it")
        known = [*self._known, *constants]
        raise self._at(node, f"unknown symbol {name!r}{hint(name, known, ': ') or '; known: ' + ', '.join(known)}")

    def _want(self, kind: str, constants: Mapping[str, float], *nodes: ast.expr) -> None:
        for node in nodes:
            if self._check(node, constants) != kind:
                meant = {"number": "a number is wanted, this is true or false", "condition": "a condition is wanted"}
                raise self._at(node, meant[kind])

    def _value(self, node: ast.expr, measured: Mapping[str, Any], constants: Mapping[str, float]) -> Any:
        def of(part: ast.expr) -> Any:
            return self._value(part, measured, constants)

        try:
            match node:
                case ast.Constant(value=value):
                    return float(value)  # type: ignore[arg-type]
                case ast.Name(id=name):
                    return float(constants[name]) if name in constants else measured[self._known[name]]
                case ast.BinOp(left=left, op=op, right=right):
                    return _real(_ARITHMETIC[type(op)](of(left), of(right)))
                case ast.UnaryOp(op=ast.Not(), operand=operand):
                    return _not(of(operand))
                case ast.UnaryOp(op=op, operand=operand):
                    return -of(operand) if isinstance(op, ast.USub) else of(operand)
                case ast.BoolOp(op=op, values=values):
                    return _fold(operator.and_ if isinstance(op, ast.And) else operator.or_, [of(v) for v in values])
                case ast.Compare(left=left, ops=ops, comparators=others):
                    sides = [of(left), *(of(other) for other in others)]
                    steps = zip(ops, sides[:-1], sides[1:], strict=True)
                    return _fold(operator.and_, [_COMPARISONS[type(op)](x, y) for op, x, y in steps])
                case ast.Call(func=ast.Name(id=name), args=arguments):
                    return _real(FUNCTIONS[name][2](*(of(argument) for argument in arguments)))
        except (ArithmeticError, ValueError) as error:
            if "\n" in str(error):
                raise  # it points at its place already
            raise self._at(node, f"cannot be computed: {error}") from error
        raise AssertionError(ast.dump(node))  # _check let it through

    def _at(self, node: ast.expr, what: str) -> ValueError:
        start = len(self.text.encode()[: node.col_offset].decode())
        end = len(self.text.encode()[: node.end_col_offset].decode())
        return self._wrong(what, start, end - start)

    def _wrong(self, what: str, start: int, width: int) -> ValueError:
        return ValueError(f"{self.key}: {what}\n    {self.text}\n    {' ' * start}{'^' * max(1, width)}")


def _real(value: Any) -> Any:
    """A float must stay a finite one: 1/0 and (−1) ** 0.5 of constants are refused when they are read."""
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"it is {value}")
    return value


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape")


def _fold(combine: Callable[[Any, Any], Any], values: list[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)
    return result


def _not(value: Any) -> Any:
    return ~value if _is_tensor(value) else not value


def _method(name: str, plain: Callable[[float], float]) -> Callable[[Any], Any]:
    return lambda x: getattr(x, name)() if _is_tensor(x) else plain(x)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x)


def _logsigmoid(x: Any) -> Any:
    """As min(x, 0) − log(1 + e^−|x|), which is exact in both tails."""
    if _is_tensor(x):
        return x.clamp(max=0) - (-x.abs()).exp().log1p()
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def _least(x: Any, y: Any) -> Any:
    if _is_tensor(x) and _is_tensor(y):
        return x.minimum(y)
    if _is_tensor(x) or _is_tensor(y):
        return x.clamp(max=y) if _is_tensor(x) else y.clamp(max=x)
    return min(x, y)


def _most(x: Any, y: Any) -> Any:
    if _is_tensor(x) and _is_tensor(y):
        return x.maximum(y)
    if _is_tensor(x) or _is_tensor(y):
        return x.clamp(min=y) if _is_tensor(x) else y.clamp(min=x)
    return max(x, y)


def _where(condition: Any, x: Any, y: Any) -> Any:
    if not _is_tensor(condition):
        return x if condition else y
    if _is_tensor(x):
        return x.where(condition, y)
    if _is_tensor(y):
        return y.where(~condition, x)
    yes = condition.double()
    return yes * x + (1 - yes) * y


# name → (fewest arguments, most, what it does to floats and tensors)
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "sigmoid": (1, 1, _method("sigmoid", _sigmoid)),
    "logsigmoid": (1, 1, _logsigmoid),
    "tanh": (1, 1, _method("tanh", math.tanh)),
    "exp": (1, 1, _method("exp", math.exp)),
    "expm1": (1, 1, _method("expm1", math.expm1)),
    "log": (1, 1, _method("log", math.log)),
    "log1p": (1, 1, _method("log1p", math.log1p)),
    "sqrt": (1, 1, _method("sqrt", math.sqrt)),
    "abs": (1, 1, abs),
    "min": (2, 8, lambda *values: _fold(_least, list(values))),
    "max": (2, 8, lambda *values: _fold(_most, list(values))),
    "clip": (3, 3, lambda x, low, high: _least(_most(x, low), high)),
    "where": (3, 3, _where),
}
