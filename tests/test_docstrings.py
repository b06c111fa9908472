"""Every public name says what it is, and every function of the roof shows an example that runs."""

import ast
from pathlib import Path

import refquant

PACKAGE = Path(__file__).parent.parent / "refquant"


def undocumented(source: str) -> list[str]:
    """The functions and classes of a module's `__all__` without a docstring; `module` for the module itself."""
    tree = ast.parse(source)
    public: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public |= {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}  # type: ignore[misc]
    found = [] if ast.get_docstring(tree) else ["module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public and not ast.get_docstring(node):
            overload = any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
            found += [] if overload else [node.name]
    return found


def without_example(name: str) -> bool:
    """Whether the public name is a function whose docstring shows no example."""
    thing = getattr(refquant, name)
    return callable(thing) and not isinstance(thing, type) and ">>> " not in (thing.__doc__ or "")


def test_every_public_name_has_a_docstring() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 5
    offenders = {str(path.relative_to(PACKAGE)): undocumented(path.read_text(encoding="utf-8")) for path in files}
    assert {file: names for file, names in offenders.items() if names} == {}


def test_every_module_lists_its_public_names() -> None:
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__")]
    assert [str(path) for path in files if "\n__all__ = " not in path.read_text(encoding="utf-8")] == []


def test_every_function_of_the_roof_has_an_example() -> None:
    assert [name for name in refquant.__all__ if without_example(name)] == []


def test_a_planted_fault_is_reported() -> None:
    assert undocumented('"""Doc."""\n__all__ = ["f", "C"]\ndef f(): ...\nclass C: ...\ndef g(): ...') == ["f", "C"]
    assert undocumented('__all__ = ["f"]\ndef f():\n    """Doc."""') == ["module"]
