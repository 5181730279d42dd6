"""From a config to functions: names to modules, options to arguments, nothing allocated.

A component is a dict {"name": NAME, option: value, ...} or just its name. NAME is a module with a `make`, or a
function of a module of functions, or "module:function" for code that lives elsewhere ("__main__:make" in a notebook).
The signature of that function is the schema: defaults stand there and nowhere else, and an option that it does not
have, or a value of another type, is refused with the nearest valid name before any work is done.

Left out: lists of components. Reading, overriding and comparing configs is in config.py.
"""
import contextlib
import difflib
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple

EMPTY = inspect.Parameter.empty

# Argument name -> where the component that it takes is looked up: a package of modules with `make`, or one module.
PACKAGES = {
  "policy": "align.policies", "algorithm": "align.algorithms", "optim": "align.optim", "reward": "rewards",
  "data": "align.datasets", "prompts": "align.datasets", "heldout": "align.datasets", "pretrain": "align.datasets",
  "net": "diffusion.nets", "text": "diffusion.nets", "vae": "diffusion.nets",
  "process": "diffusion.process", "kernel": "diffusion.kernels", "diversity": "rewards.diversity",
  "dataset": "align.prepare", "generator": "diffusion", "connector": "diffusion.nets",
}
GROUPS = {"rewards": "rewards"}    # argument name of a dict {any name: component} -> where they are looked up
DEFAULTS = {"optim": "adamw"}      # components that a run has even where nothing names them
# Arguments that the caller gives, so that no config may.
PROVIDED = {"align.algorithms": ("policy", "reward", "group", "micro", "seed")}


class Options(NamedTuple):
  """Who takes the options of an argument that is a dict, but no component."""
  function: str     # "module:function"
  provided: tuple   # its arguments that the caller gives
  always: bool      # whether None means {}


OPTIONS = {
  "mesh": Options("align.shard:mesh", ("devices",), True),
  "lora": Options("align.lora:wrap", ("policy",), False),
  "evaluate": Options("align.evaluate:probe", ("policy", "seed", "mesh", "reward"), False),
  "guard": Options("align.health:rule", (), True),
  "captioner": Options("align.policies.chat:make", ("question", "states"), False),
}
TASKS = {name: f"align.{name}:{name}" for name in ("prepare", "train", "sample", "collect", "evaluate", "examine",
                                                    "swap", "pipeline", "claims")}


class UserError(ValueError):
  """Something that the user can mend; shown without a traceback."""


class ConfigError(UserError):
  """A config that cannot be built; the message starts with the dotted path of the option."""


def nearest(word: Any, words: Any) -> str:
  """" (nearest: 'grpo')", or nothing if no word is near."""
  close = difflib.get_close_matches(str(word), [str(w) for w in words], 1, 0.5)
  return f" (nearest: {close[0]!r})" if close else ""


def refuse(at: str, value: Any, allowed: Any, advice: str) -> typing.NoReturn:
  """Raises a ConfigError of four parts: the option, its value, what is allowed (a sentence or names), what to do."""
  allowed = allowed if isinstance(allowed, str) else f"it must be one of {', '.join(map(str, allowed)) or 'nothing'}"
  raise ConfigError(f"{at} = {value!r}: {allowed}; {advice}")


@contextlib.contextmanager
def blame(at: str):
  """Makes a ValueError from inside, about something that the user gave at `at`, a UserError that says so."""
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"{at}: {error}") from error


def table(rows: Any) -> str:
  """Rows as lines with aligned columns."""
  cells = [[str(c) for c in row] for row in rows]
  widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells), default=0))]
  return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip() for row in cells)


# --- names to functions ----------------------------------------------------------------------------------------------


def is_component(function: Any, module: Any) -> bool:
  """A public function of `module` itself, each argument of which is optional or a component."""
  if not inspect.isfunction(function) or function.__module__ != module.__name__ or function.__name__.startswith("_"):
    return False
  return all(p.default is not EMPTY or k in PACKAGES for k, p in inspect.signature(function).parameters.items())


def names(package: str) -> list[str]:
  """Every component of a package (modules with a `make`) or of a module (functions, see `is_component`)."""
  module = importlib.import_module(package)
  if not hasattr(module, "__path__"):
    return sorted(name for name, value in vars(module).items() if is_component(value, module))
  found = []
  for info in pkgutil.iter_modules(module.__path__):
    path = Path(info.module_finder.path) / info.name
    source = path / "__init__.py" if info.ispkg else path.with_suffix(".py")
    if source.exists() and re.search(r"^(def make\(|make = |from .* import .*\bmake\b)", source.read_text(), re.M):
      found.append(info.name)
  return sorted(found)


def imported(path: str) -> Any:
  """What stands at "module:name"."""
  module, _, name = path.partition(":")
  return getattr(importlib.import_module(module), name)


def locate(package: str, name: Any, at: str) -> Callable:
  """The function behind a component's name. Raises ConfigError with the nearest name if there is none."""
  if isinstance(name, str) and ":" in name:
    try:
      return imported(name)
    except (ImportError, AttributeError) as e:
      raise ConfigError(f"{at}.name = {name!r}: 'module:function' must be importable ({e}); "
                        "correct it or PYTHONPATH") from e
  available = names(package)
  if name not in available:
    refuse(f"{at}.name", name, available, f"choose one of them{nearest(name, available)}")
  module = importlib.import_module(package)
  return importlib.import_module(f"{package}.{name}").make if hasattr(module, "__path__") else getattr(module, name)


# --- signatures as schemas -------------------------------------------------------------------------------------------


def hints(function: Callable) -> dict:
  """Resolved annotations; none where a forward reference cannot be resolved, which only loses a check."""
  try:
    return typing.get_type_hints(function)
  except (NameError, TypeError, AttributeError):
    return {}


def schema(function: Callable, skip: Any = ()) -> tuple[dict, bool]:
  """({option: inspect.Parameter with its annotation resolved}, whether any further option is taken)."""
  kinds, found, is_open = hints(function), {}, False
  for name, p in inspect.signature(function).parameters.items():
    if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
      is_open = is_open or p.kind == p.VAR_KEYWORD
    elif name not in skip:
      found[name] = p.replace(annotation=kinds.get(name, Any))
  if is_open and hasattr(kinds.get("return"), "__dataclass_fields__"):  # make(**hparams) -> Net: the network's fields
    return {**schema(kinds["return"], ("self", "parent", "name"))[0], **found}, False
  return found, is_open


def accepts(value: Any, kind: Any) -> bool:
  """Whether a value may stand for an annotation: int for float, no bool for a number, lists for tuples."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if kind is None or kind is type(None):
    return value is None
  if origin in (typing.Union, types.UnionType):
    return any(accepts(value, a) for a in args)
  if origin is typing.Literal:
    return value in args
  kind = origin or kind
  if kind in (tuple, list):
    return isinstance(value, (tuple, list)) and members_fit(value, args)
  if kind in (int, float):
    return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
  return not isinstance(kind, type) or kind is Any or isinstance(value, kind)


def members_fit(values: Any, kinds: tuple) -> bool:
  """Whether the members of a sequence fit tuple[a, b], tuple[a, ...] or list[a]."""
  if len(kinds) > 1 and kinds[-1] is not Ellipsis:
    return len(values) == len(kinds) and all(map(accepts, values, kinds))
  return not kinds or all(accepts(v, kinds[0]) for v in values)


def expected(parameter: inspect.Parameter) -> Any:
  """The type that an option must have: its annotation, else the type of its default; Any where neither says."""
  kind, default = parameter.annotation, parameter.default
  if kind is not Any:
    return kind | None if default is None and isinstance(kind, (type, types.UnionType, types.GenericAlias)) else kind
  return type(default) if isinstance(default, (bool, int, float, str, tuple, list, Mapping)) else Any


def spell(kind: Any) -> str:
  return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def checked(value: Any, parameter: inspect.Parameter, at: str) -> Any:
  """The value in canonical form: 1 -> 1.0 where a float is meant, a list -> a tuple. ConfigError on another type."""
  kind = expected(parameter)
  if not accepts(value, kind):
    default = "" if parameter.default is EMPTY else f", such as the default {parameter.default!r}"
    refuse(at, value, f"it must be of type {spell(kind)}, but is of type {type(value).__name__}",
           f"give a value of that type{default}")
  kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
  if type(value) is int and float in kinds and int not in kinds:
    return float(value)
  is_tuple = any((typing.get_origin(k) or k) is tuple for k in kinds)
  return tuple(value) if isinstance(value, list) and is_tuple else value


def is_plain(parameter: Any) -> bool:
  """Whether an argument with a component's name takes plain values all the same, such as a kernel's name itself or the
  size of the mesh's `data` axis: its annotation says so."""
  kind = parameter.annotation if parameter is not None else Any
  kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
  return {typing.get_origin(k) or k for k in kinds} <= {str, int, float, bool, tuple, list, type(None)}


def described(value: Any, default: Any, at: str) -> Any:
  """What stands for a component -> a dict with its name; None stays None, an object made by hand stays itself."""
  if isinstance(value, str):
    return {"name": value}
  if not isinstance(value, Mapping) or "name" in value:
    return value
  if isinstance(default, (str, Mapping)):
    return {**described(default, None, at), **value}
  refuse(at, dict(value), "a component is a name, or a dict with 'name' and options", "add the name")


# --- resolving: every default of every component, written out --------------------------------------------------------


def options(values: Mapping, function: Callable, at: str, skip: Any = ()) -> dict:
  """The options of `function` with every default filled in. ConfigError on one that is unknown, missing or mistyped."""
  parameters, is_open = schema(function, skip)
  known(values, parameters, is_open, at)
  out = {k: v for k, v in values.items() if k not in parameters}
  for name, p in parameters.items():
    if name not in values and p.default is EMPTY:
      refuse(f"{at}.{name}", None, f"it must be of type {spell(expected(p))} and has no default", "set it")
    out[name] = option(name, values.get(name, p.default), p, f"{at}.{name}")
  if isinstance(out.get("runs"), Mapping):
    out["runs"] = {k: resolve(inherited(v, out), at=f"{at}.runs.{k}") for k, v in out["runs"].items()}
  return out


def known(values: Mapping, parameters: Mapping, is_open: bool, at: str) -> None:
  for k in values:
    if k not in parameters and not is_open:
      refuse(f"{at}.{k}", values[k], f"{at} has no such option, only {', '.join(parameters) or 'its name'}",
             f"rename or remove it{nearest(k, parameters)}")


def inherited(run: Any, pipeline: Mapping) -> Any:
  """A run of a pipeline has the pipeline's seed unless it sets one."""
  return {"seed": pipeline["seed"], **run} if isinstance(run, Mapping) and "seed" in pipeline else run


def option(name: str, value: Any, parameter: inspect.Parameter, at: str) -> Any:
  """One option, resolved according to its argument's name."""
  if name in GROUPS and isinstance(value, Mapping):
    return {k: resolved(GROUPS[name], v, None, f"{at}.{k}") for k, v in value.items()}
  if name in OPTIONS and (isinstance(value, Mapping) or value is None and OPTIONS[name].always):
    function, provided, _ = OPTIONS[name]
    return options(value or {}, imported(function), at, provided)
  if name in PACKAGES and not is_plain(parameter):
    default = DEFAULTS.get(name) if parameter.default in (None, EMPTY) else parameter.default
    return resolved(PACKAGES[name], default if value is None else value, default, at)
  value = checked(value, parameter, at)
  if isinstance(value, Mapping) and isinstance(parameter.default, Mapping) and parameter.default:
    return entries(value, parameter.default, at)
  return dict(value) if isinstance(value, Mapping) else value


def entries(value: Mapping, default: Mapping, at: str) -> dict:
  """A dict whose default says which keys there are, and of which types."""
  fields = {k: inspect.Parameter("entry", inspect.Parameter.KEYWORD_ONLY, default=v, annotation=Any)
            for k, v in default.items()}
  known(value, fields, False, at)
  return {k: checked(value.get(k, default[k]), p, f"{at}.{k}") for k, p in fields.items()}


def resolved(package: str, value: Any, default: Any, at: str) -> Any:
  """A component's dict with every default of its function, and of the components inside."""
  spec = described(value, default, at)
  if spec is None:
    return None
  if not isinstance(spec, Mapping):
    refuse(at, value, "a component is a name, or a dict with 'name' and options", "give one of them")
  rest = {k: v for k, v in spec.items() if k != "name"}
  function = locate(package, spec["name"], at)
  return {"name": spec["name"], **options(rest, function, at, PROVIDED.get(package, ()))}


def plain(value: Any, at: str = "config") -> Any:
  """ConfigDicts, mappings and numpy scalars -> plain data. ConfigError on what a saved config cannot hold."""
  import ml_collections  # what takes only the errors from here works without it
  value = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
  if isinstance(value, Mapping):
    return {str(k): plain(v, f"{at}.{k}") for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(plain(v, f"{at}[{i}]") for i, v in enumerate(value))
  value = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  refuse(at, value, "a config holds plain data: numbers, strings, None, lists, tuples and dicts",
         "name a function of your own as 'module:function'")


def task_function(config: Mapping, at: str = "config") -> Callable:
  """The function whose keyword-only arguments are a config's options."""
  name = config.get("task", "train")
  if name not in TASKS:
    refuse(f"{at}.task", name, list(TASKS), f"choose one of them{nearest(name, TASKS)}")
  return imported(TASKS[name])


def resolve(config: Any, function: Callable | None = None, at: str = "config") -> dict:
  """A config with every default of every named component written out, as plain nested dicts.

  `function` is the task's, by default that of config["task"]. Idempotent. Raises ConfigError with the dotted path."""
  config = plain(config, at)
  if not isinstance(config, dict):
    refuse(at, config, "it must be a dict or ConfigDict of options", "return one from get_config")
  function = function or task_function(config, at)
  skip = [n for n, p in inspect.signature(function).parameters.items() if p.kind != p.KEYWORD_ONLY]
  rest = {k: v for k, v in config.items() if k != "task"}
  return {"task": config.get("task", "train"), **options(rest, function, at, skip)}


# --- building --------------------------------------------------------------------------------------------------------


def component(argument: str, spec: Any, *args: Any) -> Any:
  """Builds what a config's argument describes: component("algorithm", config["algorithm"], policy, reward)."""
  return construct(PACKAGES[argument], spec, args, {}, f"config.{argument}")


def build(package: str, name: Any, *args: Any, **given: Any) -> Any:
  """Calls a component's function: build("align.algorithms", "dpo", policy, beta=100.).

  `name` is a name, or a component's dict, over whose options `given` wins. Components among the options are built
  first, except where the argument is annotated as `dict` or `str` and so takes them as they are. What is no name and
  no dict (a network made by hand) is passed on. Raises ConfigError on an option that does not exist, and where the
  function refuses a value."""
  at = next((k for k, v in PACKAGES.items() if v == package), package)
  return construct(package, name, args, given, f"config.{at}")


def construct(package: str, spec: Any, args: tuple, given: Mapping, at: str) -> Any:
  spec = described(spec, None, at)
  if not isinstance(spec, Mapping):
    return spec
  function = locate(package, spec["name"], at)
  values = {**{k: v for k, v in spec.items() if k != "name"}, **given}
  parameters, is_open = schema(function)
  free = {k: p for k, p in parameters.items() if k not in list(parameters)[:len(args)]}
  known(values, free, is_open, at)
  for k, p in free.items():
    if p.default is EMPTY and k not in values:
      refuse(f"{at}.{k}", None, f"it must be of type {spell(expected(p))} and has no default", "set it")
  values = {**{k: p.default for k, p in free.items() if k in PACKAGES and p.default is not EMPTY}, **values}
  kwargs = {k: built(k, v, free.get(k), f"{at}.{k}") for k, v in values.items()}
  try:
    return function(*args, **kwargs)
  except ValueError as e:
    if isinstance(e, UserError):
      raise
    raise ConfigError(f"{at}: {e}") from e


def built(name: str, value: Any, parameter: Any, at: str) -> Any:
  """One argument; a component, or a group of them, is built."""
  if name in GROUPS and isinstance(value, Mapping):
    return {k: construct(GROUPS[name], v, (), {}, f"{at}.{k}") for k, v in value.items()}
  if name in PACKAGES and isinstance(value, (str, Mapping)):
    is_raw = is_plain(parameter) or parameter is not None and expected(parameter) in (dict, dict | None)
    return value if is_raw else construct(PACKAGES[name], value, (), {}, at)
  return value if parameter is None or name in PACKAGES else checked(value, parameter, at)
