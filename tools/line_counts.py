"""Print lines of code by folder against their budgets, and fail on a file or function that has grown too long.

A budget is a limit to notice, not to game: a folder over it is marked, and the next change there should shrink it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

BUDGET_LINES = {
    "neo_engine": 9900,
    "harness": 4200,
    "results": 3300,
    "reports": 1900,
    "pacpu": 4900,
    "engines": 3700,
    "workloads": 1800,
    "src": 6200,
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SUFFIXES = {".py", ".pyi", ".cpp", ".h", ".ispc", ".isph", ".sh"}


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    paths = (Path(line) for line in listed.stdout.splitlines())
    return [path for path in paths if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()]


def long_functions(path: Path, source: str) -> list[str]:
    return [
        f"{path}:{node.lineno}: function {node.name} has {length} lines (at most {MAX_FUNCTION_LINES})"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def main() -> int:
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    problems: list[str] = []
    for path in tracked_files():
        source = path.read_text()
        count = source.count("\n")
        lines[path.parts[0]] += count
        files[path.parts[0]] += 1
        if count > MAX_FILE_LINES:
            problems.append(f"{path}: {count} lines (at most {MAX_FILE_LINES})")
        if path.suffix == ".py":
            problems += long_functions(path, source)
    print(f"{'folder':<12}{'files':>6}{'lines':>8}{'budget':>8}")
    for folder, count in sorted(lines.items()):
        budget = BUDGET_LINES.get(folder)
        mark = "  over budget" if budget is not None and count > budget else ""
        print(f"{folder:<12}{files[folder]:>6}{count:>8}{budget or '':>8}{mark}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
