"""Write the stubs for type checkers, `consistency_models/*.pyi`: `python tools/stubs.py`.

The lessons add methods to classes one cell at a time with `@patch`, which type checkers cannot see. A stub holds each
class with all of its methods, and every signature without its body.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "consistency_models"
HEAD = "# Made by tests/stubs.py; edit the notebooks.\n"
ANYTHING = ast.Name("Any", ast.Load())


def is_patch(node):
    """Whether a function is a method that its lesson adds to a class"""
    return isinstance(node, ast.FunctionDef) and any(ast.unparse(d).split("(")[0] == "patch" for d in node.decorator_list)


def owner(node):
    """The class that a patched function is for"""
    return ast.unparse(node.args.args[0].annotation)


def optional(arg, default):
    """Let an argument whose default is `None` take `None`"""
    none = isinstance(default, ast.Constant) and default.value is None
    if none and arg.annotation and "None" not in ast.unparse(arg.annotation):
        arg.annotation = ast.parse(f"{ast.unparse(arg.annotation)} | None", mode="eval").body


def signature(node, method=False):
    """A function without its body, its docstring and the values of its defaults"""
    arguments = node.args
    positional = arguments.posonlyargs + arguments.args
    pairs = list(zip(positional[len(positional) - len(arguments.defaults):], arguments.defaults)) + [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults) if d]
    for arg, default in pairs: optional(arg, default)
    arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
    arguments.kw_defaults = [d and ast.Constant(...) for d in arguments.kw_defaults]
    as_property = any("as_prop" in ast.unparse(d) for d in node.decorator_list)
    kept = [d for d in node.decorator_list if ast.unparse(d) in ("property", "staticmethod", "classmethod")]
    if method and arguments.args: arguments.args[0].annotation = None
    node.decorator_list = [ast.Name("property", ast.Load())] if as_property else kept
    node.body = [ast.Expr(ast.Constant(...))]
    return node


def pairs_of(node):
    """The targets of an assignment, each with its value where that can be told"""
    for target in node.targets:
        if not isinstance(target, ast.Tuple): yield target, node.value
        elif isinstance(node.value, ast.Tuple): yield from zip(target.elts, node.value.elts)
        else: yield from ((t, None) for t in target.elts)


def attributes(method):
    """The public attributes of `self` that a method sets, with a type where it sets them to its arguments"""
    types = {a.arg: a.annotation for a in method.args.args + method.args.kwonlyargs}
    for node in (n for n in ast.walk(method) if isinstance(n, ast.Assign)):
        for target, value in pairs_of(node):
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and not target.attr.startswith("_"):
                yield target.attr, types.get(getattr(value, "id", None)) or ANYTHING


def class_stub(node, patched, inherited):
    """A class with its fields, its attributes but the inherited ones, and its own and its patched methods"""
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef)] + patched
    set_later = ast.parse("field(init=False)", mode="eval").body if "dataclass" in ast.unparse(node).split("class ")[0] else None
    seen, found = inherited | {ast.unparse(f.target) for f in fields} | {m.name for m in methods}, {}
    for name, kind in (pair for m in methods for pair in attributes(m)):
        if name not in seen and (name not in found or found[name] is ANYTHING): found[name] = kind
    for f in fields:
        if f.value: optional(f, f.value)
        f.value = f.value and ast.Constant(...)
    node.body = fields + [ast.AnnAssign(ast.Name(name, ast.Store()), kind, set_later, 1) for name, kind in found.items()]
    node.body += [signature(m, method=True) for m in methods if public(m.name)]
    node.body = node.body or [ast.Expr(ast.Constant(...))]
    return node


def public(name):
    """Whether a name is for users"""
    return not name.startswith("_") or name.endswith("__")


def kind_of(value):
    """The type of a module's constant, where it is written out"""
    kinds = {ast.Dict: "dict", ast.Tuple: "tuple", ast.List: "list"}
    name = type(value.value).__name__ if isinstance(value, ast.Constant) else kinds.get(type(value))
    return ast.Name(name, ast.Load()) if name else ANYTHING


def declarations(nodes):
    """What a module offers, without what it does"""
    patched, known = {n: owner(n) for n in nodes if is_patch(n)}, {}
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            inherited = set().union(*(known.get(ast.unparse(base), ()) for base in node.bases))
            known[node.name] = inherited | {ast.unparse(f.target) for f in node.body if isinstance(f, ast.AnnAssign)}
            yield class_stub(node, [m for m, name in patched.items() if name == node.name], inherited)
        elif isinstance(node, ast.FunctionDef) and node not in patched and public(node.name): yield signature(node)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__": yield node
        elif isinstance(node, ast.Assign):
            yield from (ast.AnnAssign(ast.Name(t.id, ast.Store()), kind_of(node.value), None, 1) for t in node.targets if isinstance(t, ast.Name) and public(t.id))


def imports(nodes, used):
    """The imports that these names need; a module's own `import *` stays"""
    for node in (n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))):
        node.names = [a for a in node.names if a.name == "*" or (a.asname or a.name).split(".")[0] in used]
        if node.names: yield node


def stub(path):
    """The stub of one module as text"""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    made = list(declarations(nodes))
    used = {n.id for d in made for n in ast.walk(d) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    lines = ["from dataclasses import field"] * ("field" in used) + ["from typing import Any"] * ("Any" in used)
    made = ast.parse("\n".join(lines)).body + list(imports(nodes, used - {"field", "Any"})) + made
    return HEAD + ast.unparse(ast.fix_missing_locations(ast.Module(made, []))) + "\n"


def stubs():
    """All stubs, by path"""
    return {path.with_suffix(".pyi"): stub(path) for path in sorted(PACKAGE.glob("*.py")) if path.name != "_modidx.py"}


if __name__ == "__main__":
    for path, text in stubs().items(): path.write_text(text, encoding="utf-8")
