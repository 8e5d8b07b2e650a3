"""`python -m llama3_scratch` lists the verbs."""

from __future__ import annotations

import ast
from pathlib import Path

from llama3_scratch.system import stdio


def verbs() -> dict[str, str]:
    """Every module with a `main`, and the first line of its docstring."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem != "__main__" and any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> int:
    stdio.prepare()
    print("Llama 3 from scratch. Each verb answers to --help:\n")
    lines = verbs()
    for verb, line in lines.items():
        print(f"  python -m llama3_scratch.{verb:<{max(map(len, lines))}}  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
