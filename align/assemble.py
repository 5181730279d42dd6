"""From a config to functions, shapes and parameters: what a training run is made of before it starts.

`assemble` allocates nothing, `place` gives shapes and shardings by tracing, `begin` computes or loads the parameters.
"""
import dataclasses
import functools
import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu import parameter_overview

from align import build, chunks, shard, tree
from align import evaluate as evaluation
from align import lora as adapters
from diffusion import eyes, folder


class Parts(NamedTuple):
  """What a config means: functions and sources, nothing allocated."""
  policy: Any
  reward: Any
  algorithm: Any
  source: Any
  optimizer: Any
  mesh: Any
  measure: Any        # (params) -> (scalars, images) on held-out prompts, or None


class Place(NamedTuple):
  """Shapes and shardings of a run."""
  shapes: Any         # {role: tree} of everything that has parameters
  shardings: Any
  trained: str        # regex over "role/leaf"


def assemble(seed, policy, lora, algorithm, reward, data, optim, mesh, evaluate, steps, group, micro) -> Parts:
  made = build.build("align.policies", policy) if policy else None
  if made and lora:
    made = adapters.wrap(made, **lora)
  judge = build.build("rewards", reward) if reward else None
  source = build.build("align.datasets", data) if data else None
  taken = build.schema(build.locate("align.algorithms", algorithm["name"], "config.algorithm"))[0]
  prompts = source.size if source else 1  # without data only shapes are asked for
  known = {"group": group, "micro": micro, "seed": seed, "prompts": prompts}
  method = build.build("align.algorithms", algorithm, made, judge, **{k: v for k, v in known.items() if k in taken})
  length = {} if optim.get("total_steps") else {"total_steps": steps}
  optimizer = build.build("align.optim", optim, **length)
  grid = shard.mesh(**mesh)
  measure = evaluation.probe(made, seed, grid, judge, **evaluate) if evaluate else None
  return Parts(made, judge, method, source, optimizer, grid, measure)


def place(parts: Parts, trained: str) -> Place:
  shapes = jax.eval_shape(functools.partial(initial, parts, trained), jax.random.key(0))
  names = tree.flatten(shapes)
  if not any(re.search(trained, name) for name in names):
    raise build.UserError(f"config.trained = {trained!r} matches none of the {len(names)} parameters; names look like "
                          f"{', '.join(list(names)[:3])}; it is a regular expression over role/leaf")
  check_trained(parts, trained, names)
  check_judge(parts, shapes.get("reward", {}))
  return Place(shapes, shard.specs(shapes, shard.RULES, parts.mesh), trained)


def check_trained(parts: Parts, trained: str, names) -> None:
  """Refuses to train what must stand still, and to leave untrained what an algorithm brings to be trained."""
  hit = {name.split("/")[0] for name in names if re.search(trained, name)}
  for role in sorted(hit & {"base", *parts.algorithm.follow}):
    raise build.UserError(f"config.trained = {trained!r} matches the role {role!r}, which is not trained; begin it "
                          "with the role, as in '^policy/'")
  still = parts.policy.still if parts.policy else ""
  fixed = next((name for name in names if still and re.search(trained, name)
                and re.match(rf"policy/(lora/)?({still})", name)), None)
  if fixed:
    raise build.UserError(f"config.trained = {trained!r} matches {fixed!r}, which stands still here, as an "
                          "autoencoder does, and text encoders do unless config.policy.frozen is False; name what is "
                          "trained, as in '^policy/net/', and of adapters config.lora.targets, as in '^net/'")
  for role in sorted(set(parts.algorithm.nets) - hit):
    raise build.UserError(f"config.trained = {trained!r} leaves out {role!r}, a network that this algorithm learns; "
                          f"add it, as in '^(policy|{role})/'")


def check_judge(parts: Parts, shapes: dict) -> None:
  """Refuses networks that every process would ask about samples of its own, while all of them hold the parameters."""
  held, processes = chunks.networks(shapes), jax.process_count()
  if held and processes > 1 and parts.algorithm.rollout and parts.reward.where == "host":
    raise build.UserError(f"config.reward is called on the host and has the parameters {held[0]!r}, of which "
                          f"{processes} processes hold shares and could not use them there, each for samples of its "
                          "own; choose rewards that are all called on the devices, or run one process")


def initial(parts: Parts, trained: str, key) -> dict:
  """{role: tree}: the base, what is trained of it, rewards, an algorithm's own networks, and the followers."""
  keys = jax.random.split(key, 3)
  roles = {}
  if parts.policy:
    whole = parts.policy.init(keys[0])
    roles["base"], roles["policy"] = base_and_policy(whole, trained)
  if parts.reward:
    judged = parts.reward.init(keys[1])
    roles |= {"reward": judged} if judged else {}
  for i, (role, init) in enumerate(parts.algorithm.nets.items()):
    roles[role] = init(jax.random.fold_in(keys[2], i))
  return follow_from(roles, parts.algorithm.follow, trained)


def base_and_policy(whole: dict, trained: str) -> tuple[dict, dict]:
  """The role `policy` holds what is trained; adapters are no part of the base, so that the reference is the base."""
  chosen, _ = tree.partition({"policy": whole}, trained)
  full = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))  # small updates of a half would be rounded away
  return {k: v for k, v in whole.items() if k != "lora"}, jax.tree.map(full, chosen.get("policy", {}))


def follow_from(roles: dict, follow: dict, trained: str) -> dict:
  """Followers hold what is trained of their source."""
  moved = tree.partition(roles, trained)[0]
  return {**roles, **{role: moved.get(source, {}) for role, (source, _, _) in follow.items()}}


def begun(where: Place, policy: dict | None, reward: dict | None) -> dict:
  """{role: model} of the public models that the descriptions name and whose weights the roles begin from. UserError
  for a reward's model that is a description without weights."""
  for role, part in described("reward", reward or {}).items():
    if part.get("model") and eyes.is_described(part["model"]):
      raise build.UserError(f"config.{role.replace('/', '.rewards.')}.model = {part['model']!r} is a description "
                            "without weights and tokenizer; give a folder of the model, see the reward's own text")
  models = {role: part["model"] for role, part in described("reward", reward or {}).items()
            if part.get("model") and folder.reader_of(part["model"])}
  flat = tree.flatten(where.shapes)
  held = {role: model for role, model in models.items() if any(name.startswith(f"{role}/net/") for name in flat)}
  return held | ({"policy": policy["model"]} if policy and policy.get("model") else {})


def described(role: str, reward: dict) -> dict:
  """{role: description} of a reward and, if it is a mixture, of its parts, and of theirs; of a cache, what it keeps."""
  if reward.get("reward"):
    return described(role, reward["reward"])
  found = {role: reward}
  for name, part in (reward.get("rewards") or {}).items():
    found |= described(f"{role}/{name}", part)
  return found


def load_start(shapes: dict, start: dict, shardings: dict, wider: int = 0) -> dict:
  """{name: leaf} of what a run begins from: {"policy": model, "reward": model, "policy/PART": model, "reward/NAME":
  model}; a policy's leaves are those of the base. wider: see folder.load."""
  known, found = tree.flatten(shapes), {}
  for role, model in (start or {}).items():
    target = re.sub("^policy(?=/|$)", "base", role)
    if not any(name.startswith(target + "/") for name in known):
      raise build.UserError(f"config.start.{role}: this run has no parameters called {role!r}; it has "
                            f"{', '.join(sorted(shapes))}")
    inside, place = (functools.reduce(lambda t, k: t[k], target.split("/"), tree_) for tree_ in (shapes, shardings))
    with build.blame(f"config.start.{role}"):
      loaded = folder.load(model, role.split("/")[0], like=inside, place=place,
                           wider=wider if target == "base" else 0)
    found |= {f"{target}/{name}": leaf for name, leaf in tree.flatten(loaded).items()}
  return found


def copies(parts: Parts, names) -> dict:
  """{name: the leaf that it begins as a copy of}: what is trained of the base, and followers."""
  out = {name: "base" + name[len("policy"):] for name in names
         if name.startswith("policy/") and not name.startswith("policy/lora/")}
  for role, (source, _, _) in parts.algorithm.follow.items():
    out |= {name: source + name[len(role):] for name in names if name.startswith(role + "/")}
  return out


def begin(parts: Parts, where: Place, seed: int, start: dict) -> dict:
  """Parameters of every role, on their shards; only what is not loaded is computed. No two leaves share memory, since
  what is trained is donated, and none is held twice on the way."""
  low = parts.policy.low if parts.policy else ()
  flat = load_start(where.shapes, start, where.shardings, low[-1] if low else 0)
  places, types = tree.flatten(where.shardings), tree.flatten(where.shapes)
  copied = copies(parts, places)
  wanted = [name for name in places if name not in flat and name not in copied]

  def fresh(key):
    made = tree.flatten(initial(parts, where.trained, key))
    return {name: made[name] for name in wanted}

  flat = {name: shard.settled(flat.pop(name), places[name]) for name in list(flat)}
  if wanted:
    flat |= jax.jit(fresh, out_shardings={name: places[name] for name in wanted})(jax.random.key(seed))
  for name, source in copied.items():
    while source in copied:
      source = copied[source]
    flat[name] = jnp.array(flat[source], types[name].dtype)  # a copy
  return tree.unflatten(flat)


def changing(parts: Parts, trained: str, roles: dict) -> tuple[dict, dict]:
  """(what the state holds: trained leaves and followers, what is frozen)."""
  pattern = "|".join([trained] + [f"^{role}/" for role in parts.algorithm.follow])
  return tree.partition(roles, pattern)


@dataclasses.dataclass
class Parameter:
  """A row of the table of parameters."""
  name: str
  shape: tuple
  dtype: str
  size: int
  sharding: tuple
  trained: str


def of_model(policy: dict | None, model: str | None) -> dict | None:
  """The policy's description with config.model in it. UserError where it is no public model."""
  if model is None:
    return policy
  if not policy or "model" not in policy:
    raise build.UserError(f"config.model = {model!r} is the folder of a public model, but config.policy = "
                          f"{(policy or {}).get('name')!r} is none; leave it out, or set config.policy to 'public' or "
                          "'chat'")
  return {**policy, "model": model}


def prospect(config: dict) -> tuple[Parts, Place]:
  """What a resolved config would run on, without its data; refuses what cannot be, and allocates nothing."""
  pick = lambda k, default: config.get(k) or default
  policy = of_model(config.get("policy"), config.get("model"))
  parts = assemble(pick("seed", 0), policy, config.get("lora"), config["algorithm"], config.get("reward"),
                   None, pick("optim", {"name": "adamw"}), pick("mesh", {}), {}, config["steps"], config["group"],
                   config["micro"])
  shard.check_batch(config["batch"] * config["group"], parts.mesh)
  chunks.count(parts.reward, config.get("chunks"), config["batch"], config["group"], parts.mesh)
  if config["micro"] < 1:
    raise build.UserError(f"config.micro = {config['micro']} must be at least 1, the whole minibatch at once")
  return parts, place(parts, config["trained"])


def outline(config: dict) -> str:
  """What --print shows: the resolved config, the parameter table and the batch arithmetic; nothing is allocated."""
  options = {k: v for k, v in config.items() if k != "task"}
  parts, where = prospect(options)
  specs = tree.flatten(where.shardings)
  rows = [Parameter(name, leaf.shape, str(leaf.dtype), leaf.size, tuple(specs[name].spec),
                    "yes" if re.search(where.trained, name) else "")
          for name, leaf in tree.flatten(where.shapes).items()]
  chosen, _ = tree.partition(where.shapes, where.trained)
  updates, samples = parts.algorithm.updates, options["batch"] * options["group"]
  arithmetic = (f"{options['batch']} prompts x {options['group']} samples = {samples} samples an experience; "
                f"{updates} updates an experience, each in {options['micro']} pieces; {options['steps']} updates in "
                f"all = {-(-options['steps'] // updates)} experiences = {-(-options['steps'] // updates) * samples} "
                "samples")
  return "\n\n".join([json.dumps(config, indent=1, default=str), parameter_overview.make_table(rows),
                      f"{tree.count(where.shapes):,} parameters, {tree.count(chosen):,} trained", arithmetic])
