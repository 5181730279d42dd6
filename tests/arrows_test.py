"""Imports run downwards only: align -> rewards -> diffusion. launch/ stands alone, except for its benchmark."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY = {"diffusion": {"diffusion"}, "rewards": {"rewards", "diffusion"},
       "align": {"align", "rewards", "diffusion", "configs"}, "configs": {"configs", "rewards"}, "launch": {"launch"}}
FORBIDDEN = {"tensorflow", "torch", "diffusers"}
# what measures imports what is measured
BENCHMARK = {f"launch/{name}.py" for name in ("bench", "convs", "gpu", "judge_peer", "judging", "kept", "ours",
                                              "overlap", "peer", "phases", "scoring", "scoring_peer")}
MAY_USE = dict.fromkeys(BENCHMARK, {"torch", "diffusers"}) | {"diffusion/convert/pickles.py": {"torch"}}
FILES = sorted(p.relative_to(ROOT).as_posix() for package in MAY for p in (ROOT / package).rglob("*.py"))


def imported(source: str) -> set[str]:
  """Top-level names of everything that a module imports, also inside functions and by import_module("...")."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add("(relative)" if node.level else node.module.split(".")[0])
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
      first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
      if isinstance(first, ast.Constant):
        found.add(str(first.value).split(".")[0])
  return found


@pytest.mark.parametrize("file", FILES)
def test_arrows(file):
  names, package = imported((ROOT / file).read_text()), file.split("/")[0]
  allowed = set(MAY) if file in BENCHMARK else MAY[package]
  wrong = sorted(names & (set(MAY) - allowed))
  assert not wrong, f"{file} imports {wrong}, but may import only {sorted(allowed)}"
  unwanted = names & (FORBIDDEN - MAY_USE.get(file, set()))
  assert not unwanted, f"{file} imports {sorted(unwanted)}, which are for tests, benchmarks and pickles only"
  assert "(relative)" not in names, f"{file} imports relatively; write the package's name"


def test_every_kind_of_import_is_seen():
  source = "import a.b\nfrom c.d import e\ndef f():\n  import g\n  import_module('h.i')\n  x.import_module(f'j.{k}')\n"
  assert imported(source) == {"a", "c", "g", "h", "j"}
