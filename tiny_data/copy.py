"""Copy a mechanism into another project: what it is defined by, as a file that runs alone.

    python -m tiny_data.copy trajectory > trajectory.py         a scheme: its modules
    python -m tiny_data.copy window_attention > window.py       a function
    python -m tiny_data.copy VideoTransformer > model.py        a class
"""

import argparse
import ast
from pathlib import Path

import video_attention as va

SOURCE = Path(va.__file__).read_text()


def definitions(source=SOURCE):
    """{name: its text}, comments above it included, for all that the top level of the file defines
    or imports, in its order."""
    found, lines = {}, source.splitlines()
    for node in ast.parse(source).body:
        first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
        while lines[first - 2].startswith("#") and not lines[first - 2].startswith("# ===="):
            first -= 1
        text = "\n".join(lines[first - 1 : node.end_lineno])
        for name in names_made(node):
            found[name] = text
    return found


def names_made(node):
    """The names that a statement at the top level defines or imports."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(name.asname or name.name).split(".")[0] for name in node.names]
    targets = getattr(node, "targets", [])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def closure(names, source=SOURCE):
    """The names of all definitions and imports that these need, themselves included."""
    known, needed, todo = definitions(source), set(), list(names)
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            used = {x.id for x in ast.walk(ast.parse(known[name])) if isinstance(x, ast.Name)}
            todo += used & known.keys()
    return needed


def modules_of(scheme):
    """What the steps of a scheme are made of, what they are handed, and the module around them."""
    made_of = [x for make in va.ATTENTION[scheme] for x in (make.args[0], *make.args[1].values())]
    return ["Attention", *(x.__name__ for x in made_of if callable(x))]


def copied(name, source=SOURCE):
    """The text of a file with this definition, or the modules of this scheme, and their needs."""
    needed = closure([name] if name in definitions(source) else modules_of(name), source)
    parts = [text for known, text in definitions(source).items() if known in needed]
    imports = [part for part in dict.fromkeys(parts) if part.startswith(("import", "from"))]
    rest = [part for part in dict.fromkeys(parts) if part not in imports]
    heading = f'"""{name}, from video_attention.py, with all that it needs."""'
    return "\n\n\n".join([f"{heading}\n\n" + "\n".join(imports), *rest]) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m tiny_data.copy")
    names = [*va.ATTENTION, *definitions()]
    parser.add_argument("name", choices=names, metavar="name", help="of a scheme or a definition")
    print(copied(parser.parse_args().name), end="")


if __name__ == "__main__":
    main()
