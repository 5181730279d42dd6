"""Config files: read, overridden from the command line, compared.

Resolving them (defaults, unknown keys, types) is in build.py. A config is plain data, so that it is saved as JSON.
"""
import ast
import importlib
import inspect
import json
import os
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import ml_collections

from align import build
from align.build import nearest, refuse

# Options that may differ when a run is continued, also inside a pipeline: they change no number of it.
FREE = (r"^config\.(runs\.[^.]+\.)?(mesh|log_every|save_every|keep|evaluate\.guard\.action|"
        r"sweeps|into|jobs|run_missing)(\.|$)")  # the last four of claims, whose runs are those of their sweeps


# --- overrides -------------------------------------------------------------------------------------------------------


def parse(text: Any) -> Any:
  """A Python literal, else the text itself."""
  if not isinstance(text, str):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def split(item: Any) -> tuple[list[str], Any]:
  """"config.a.b=1" or ("a.b", "1") -> (["a", "b"], "1")."""
  if isinstance(item, str) and "=" not in item:
    refuse(item, None, "an override has the form config.a.b=value", "add '=' and the value")
  path, text = item.split("=", 1) if isinstance(item, str) else item
  keys = path.lstrip("-").split(".")
  return (keys[1:] if keys[0] == "config" else keys), text


def renamed(keys: list[str], value: Any) -> list[str]:
  """The component that an override names, as its path; [] where it names none."""
  owner = keys[:-1] if keys[-1] == "name" else keys
  named = owner and (owner[-1] in build.PACKAGES or len(owner) > 1 and owner[-2] in build.GROUPS)
  return owner if named and isinstance(value, str) else []


def reach(config: dict, keys: list[str]) -> dict:
  """The dict at config[a][b], made in place where it is missing, from {"name": x} where it is the name x."""
  node = config
  for key in keys:
    below = node.get(key)
    node[key] = {"name": below} if isinstance(below, str) else dict(below or {})
    node = node[key]
  return node


def put(config: dict, keys: list[str], value: Any) -> None:
  reach(config, keys[:-1])[keys[-1]] = value


def rename(config: dict, owner: list[str], keys: list[str], name: str) -> None:
  """`a.name=x` keeps the file's options, which x must have; `a=x` starts from the defaults of x."""
  at = ".".join(["config", *owner])
  put(config, keys, name)
  package = build.PACKAGES.get(owner[-1]) or build.GROUPS[owner[-2]]
  if ":" not in name and name not in build.names(package):
    return  # it is refused when the config is resolved
  parameters, is_open = build.schema(build.locate(package, name, at), build.PROVIDED.get(package, ()))
  for k, v in reach(config, owner).items():
    if k != "name" and k not in parameters and not is_open:
      refuse(f"{at}.{k}", v, f"{name!r} has no such option, only {', '.join(parameters)}",
             f"the config file sets it for another component: remove it there, or drop all options by {at}={name}")


def override(config: Any, items: Any, function: Callable | None = None) -> dict:
  """A resolved config with ["config.a.b=value" or ("a.b", value), ...] applied.

  Texts are read as Python literals, else as strings. Names of components come first, since they decide which options
  exist. The others must exist in the resolved config and keep their types (ml_collections.ConfigDict)."""
  config, later = build.plain(config), []
  for keys, text in sorted(map(split, items), key=lambda item: len(item[0])):
    owner = renamed(keys, parse(text))
    if owner:
      rename(config, owner, keys, parse(text))
    elif keys == ["task"] or len(keys) == 3 and keys[0] == "runs" and keys[2] == "task":
      put(config, keys, text)
    else:
      later.append((keys, text))
      reach(config, keys[:next((i for i, k in enumerate(keys[:-1], 1) if k in build.OPTIONS), 0)])
  shown = ml_collections.ConfigDict(build.resolve(config, function))
  for keys, text in later:
    put(config, keys, assigned(shown, keys, text))
  return build.resolve(config, function)


def assigned(config: Any, keys: list[str], text: Any) -> Any:
  """config.a.b = text in a resolved ConfigDict; returns the value that it then has."""
  node, at = config, "config"
  for i, key in enumerate(keys):
    if key not in node:
      refuse(f"{at}.{key}", text, f"{at} has no such option, only {', '.join(sorted(node))}",
             f"correct the name{nearest(key, node)}")
    at = f"{at}.{key}"
    if i == len(keys) - 1:
      return set_(node, key, text, at)
    node = node[key]
    if not isinstance(node, ml_collections.ConfigDict):
      refuse(f"{at}.{keys[i + 1]}", text, f"{at} is {node!r}, which has no options",
             f"name it first, by {at}=NAME, or leave this out")


def set_(node: Any, key: str, text: Any, at: str) -> Any:
  """Assigns with ConfigDict's type safety; a dict replaces a dict whole, a text stays one where a text is meant."""
  value, current = parse(text), node[key]
  if isinstance(current, ml_collections.ConfigDict) and isinstance(value, Mapping):
    return value
  if {type(value), type(current)} == {bool, str}:  # a switch that may be a name too, as remat is: `build` knows
    with node.ignore_type():
      node[key] = value
    return value
  try:
    node[key] = text if isinstance(current, str) and value is not None else value
  except (TypeError, ValueError) as e:
    kind = "dict" if isinstance(current, ml_collections.ConfigDict) else type(current).__name__
    raise build.ConfigError(f"{at} = {text!r}: it must be of type {kind}; "
                            f"give a value like {build.plain(current)!r}") from e
  return build.plain(node[key])


# --- files -----------------------------------------------------------------------------------------------------------


def shipped() -> Path:
  """The folder of the installed configs."""
  return Path(importlib.import_module("configs").__file__).parent


def available() -> list[str]:
  """Every shipped config, as it is written on the command line."""
  paths = (p for p in shipped().rglob("*.py") if "def get_config(" in p.read_text())
  return sorted(f"configs/{p.relative_to(shipped())}" for p in paths)


def find(path: str) -> Path:
  """The file as given, else configs/NAME.py of the installed `configs` package."""
  for candidate in (Path(path), shipped().parent / path if path.startswith("configs/") else Path(path)):
    if candidate.is_file():
      return candidate
  refuse("--config", path, f"there is no such file; shipped are {', '.join(available())}",
         f"correct the path{nearest(path, available())}")


def load(path: str) -> dict:
  """The config of "FILE.py" or "FILE.py:argument", from its get_config() or get_config(argument), as plain dicts."""
  path, colon, argument = str(path).partition(":")
  module = types.ModuleType(f"config_{Path(path).stem}")
  module.__file__ = str(find(path))
  exec(compile(Path(module.__file__).read_text(), module.__file__, "exec"), vars(module))
  if not callable(vars(module).get("get_config")):
    refuse("--config", path, "a config file defines get_config(), which returns an ml_collections.ConfigDict",
           f"define it{nearest('get_config', vars(module))}")
  if colon and not inspect.signature(module.get_config).parameters:
    refuse("--config", f"{path}:{argument}", "its get_config() takes no argument", f"leave out ':{argument}'")
  try:
    return build.plain(module.get_config(argument) if colon else module.get_config())
  except ValueError as e:
    raise build.ConfigError(f"--config={path}{colon}{argument}: {e}") from e


# --- comparing -------------------------------------------------------------------------------------------------------


def dotted(config: Mapping, prefix: str = "config") -> dict:
  """{"a": {"b": 1}} -> {"config.a.b": 1}; an empty dict is a value."""
  flat = {}
  for k, v in config.items():
    flat.update(dotted(v, f"{prefix}.{k}") if isinstance(v, Mapping) and v else {f"{prefix}.{k}": v})
  return flat


def bound(config: Mapping) -> dict:
  """{dotted key: value} as JSON of what a run cannot change when it continues: all but FREE options."""
  return {k: v for k, v in dotted(json.loads(json.dumps(config))).items() if not re.search(FREE, k)}


def difference(old: Mapping, new: Mapping) -> list[tuple[str, Any, Any]]:
  """[(dotted key, old, new)] where two configs differ in what is bound; absent is "(absent)"."""
  a, b = bound(old), bound(new)
  rows = [(k, a.get(k, "(absent)"), b.get(k, "(absent)")) for k in dict.fromkeys([*a, *b])]
  return [row for row in rows if row[1] != row[2]]


def claim(config: Mapping, workdir: Any, is_writer: bool = True) -> None:
  """Makes WORKDIR and writes WORKDIR/config.json, atomically. UserError if it holds a run with another config."""
  path = Path(workdir) / "config.json"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      same(json.loads(path.read_text()), config, workdir)
    if is_writer:
      path.with_suffix(".tmp").write_text(json.dumps(config, indent=1))
      os.replace(path.with_suffix(".tmp"), path)
  except OSError as e:
    raise build.UserError(f"--workdir = {str(workdir)!r} cannot be written: {e.strerror}; it must be a folder with "
                          "free space that you may write to, choose another or mend that") from e
  except json.JSONDecodeError as e:
    raise build.UserError(f"{path} is not JSON ({e}); it must be the config of the run in that folder, restore it or "
                          "choose another --workdir") from e


def same(old: Mapping, new: Mapping, workdir: Any) -> None:
  rows = difference(old, new)
  if rows:
    shown = build.table([("option", "there", "now"), *rows])
    raise build.UserError(f"--workdir = {str(workdir)!r} holds a run with another config:\n{shown}\n"
                          "a run continues with its own config only; use it, or another --workdir")
