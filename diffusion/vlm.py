"""A vision-language model from a folder in transformers' layout: conversations in, answers and log-probabilities out.

Qwen2.5-VL, Qwen2-VL and LLaVA-OneVision. Conversations of different lengths make one batch: columns are padded at the
end, slices of pictures to the largest one, and both up to the next size of a short list, so that batches of nearly the
same size run the same compiled program. A picture that several conversations of a batch show goes through the vision
tower once, and a beginning that all of them share, such as a text in front of the candidates, is read once. Padding
is masked, which XLA's own attention alone can do: its scores take 4 P^2 bytes a head and sample. Left out: kernels that
need less, audio, streaming, beams.
"""
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import chat, decode, hub, pixels, weights
from diffusion.convert import core, llava, qwen
from diffusion.nets.siglip import Siglip

NETWORKS = {name: module for module in (qwen, llava) for name in module.CLASSES}
STEM = "model"
BASES = Path(__file__).parent / "bases"
COPIED = (".json", ".jinja", ".txt", ".model")  # of a folder's files besides its weights
CONTEXT = 32768  # columns, where a config.json does not say
LEAST = 32       # columns of the smallest batch, and of the shortest beginning that is read once


class Model(NamedTuple):
  """An opened folder; no weights are read yet. context: the most columns that the network was made for.
  seconds: positions that a second of a clip takes, or None where a clip's steps are counted."""
  root: Path
  config: dict
  layout: core.Layout
  chat: chat.Chat
  processor: pixels.Processor
  context: int
  seconds: float | None

  @property
  def net(self):
    return self.layout.net


class Row(NamedTuple):
  """One conversation. ids [P]; owner [P]: which of `shown` a column belongs to, -1 for text; shown: (key, Seen)."""
  ids: np.ndarray
  owner: np.ndarray
  shown: list


class Answer(NamedTuple):
  """text: without special tokens. tokens, log_prob [n]: up to and with the token that ends it, if it came."""
  text: str
  tokens: np.ndarray
  log_prob: np.ndarray


def is_public(folder: Any) -> bool:
  """Whether this is a folder in transformers' layout of a class that is known here."""
  path = Path(folder) / "config.json"
  return path.is_file() and kind(json.loads(path.read_text())) in NETWORKS


def kind(config: dict) -> str | None:
  return (config.get("architectures") or [None])[0]


def at(model: Any) -> Path | None:
  """The folder that `model` is, that a run left in it, or that ships with the package; None where none is one."""
  return next((folder for folder in (Path(model), Path(model) / "export", BASES / model) if is_public(folder)), None)


def open_(model: Any, dtype: str = "float32", remat: bool | str = False) -> Model:
  """model: a folder, or a workdir whose run trained one. ValueError names what is no such folder, another class, or an
  option that is not supported."""
  root = at(model) or Path(model)
  if not (root / "config.json").is_file():
    raise ValueError(f"model: {root / 'config.json'} cannot be read; a vision-language model is a folder in "
                     f"transformers' layout, of {', '.join(NETWORKS)}, or `judge`, which ships with the package: "
                     "correct the path, or copy the folder again")
  config = hub.described(root / "config.json")
  if kind(config) not in NETWORKS:
    raise ValueError(f"model: architectures = {config.get('architectures')} in {root / 'config.json'} is not one of "
                     f"{', '.join(NETWORKS)}; use a checkpoint of one of these classes")
  held = weights.component(root, STEM)
  try:
    layout = NETWORKS[kind(config)].make(config, dtype=dtype, remat=remat, files=held)
  except KeyError as error:
    raise ValueError(f"model: {root / 'config.json'} has no entry {error}, which {kind(config)} needs; copy the folder "
                     "again") from error
  core.matched(held, layout)
  text, look = config.get("text_config") or config, config.get("vision_config") or {}
  talk = chat.load(root, config.get("image_token_id", config.get("image_token_index")),
                   config.get("video_token_id", config.get("video_token_index")))
  return Model(root, config, layout, talk, pixels.load(root), text.get("max_position_embeddings", CONTEXT),
               look.get("tokens_per_second"))


def load(model: Model, place: Any = None, dtype: Any = None) -> dict:
  """The parameters, each leaf read straight onto its sharding (place: a tree of shardings); dtype None: as in the file.
  """
  return core.load(weights.component(model.root, STEM), model.layout, place, dtype)


def save(model: Model, params: dict, folder: Any, shard_bytes: int = 5 * 10 ** 9) -> Path:
  """Writes a whole folder: weights under the names that the opened one has, and copies of its other files. A leaf that
  is as it was opened has the type of its file, a changed one its own."""
  folder, held = Path(folder), weights.component(model.root, STEM)
  if folder.resolve() == model.root.resolve():
    raise ValueError(f"model: {folder} is the folder that was opened; choose another one to write to")
  folder.mkdir(parents=True, exist_ok=True)
  for file in sorted(model.root.iterdir()):
    if file.is_file() and file.suffix in COPIED:
      shutil.copyfile(file, folder / file.name)
  (folder / f"{STEM}.safetensors.index.json").unlink(missing_ok=True)  # of the weights that were opened
  core.save(folder, STEM, model.layout, params, hub.types(held, model.layout, params), shard_bytes=shard_bytes)
  return folder


def fresh(model: Model, key: Any, dtype: str = "float32") -> dict:
  """Newly drawn parameters."""
  made = core.initial(model.layout, key, *(jnp.zeros(a.shape, a.dtype) for a in model.layout.example()))
  return jax.tree.map(lambda a: a.astype(dtype), made)


# --- conversations as arrays -----------------------------------------------------------------------------------------


def rounded(count: int, least: int = 1) -> int:
  """The least of least * (1, 2, 3, 4, 6, 8, 12, 16, 24 ...) that is not below count."""
  size = least * 2 ** max(math.ceil(math.log2(max(count, 1) / least)), 0)
  return size * 3 // 4 if size >= 4 * least and size * 3 // 4 >= count else size


def lowered(count: int, least: int = 1) -> int:
  """The highest of 0 and the same sizes that is not above count."""
  if count < least:
    return 0
  size = least * 2 ** int(math.log2(count / least))
  return size * 3 // 2 if size >= 2 * least and size * 3 // 2 <= count else size


def common(rows: list) -> int:
  """How many of the first columns are the same in all rows, of text and of pictures; one of each row is left over."""
  which, least = {}, min(len(r.ids) for r in rows) - 1
  shown = lambda r: np.array([*(which.setdefault(key, len(which)) for key, _ in r.shown), -1])[r.owner[:least]]
  told = np.stack([np.stack([r.ids[:least], shown(r)]) for r in rows])
  differs = (told != told[:1]).any((0, 1))
  return int(differs.argmax()) if differs.any() else least


def row(model: Model, conversation: list, begun: tuple = (), seen: dict = None, room: int = 0) -> Row:
  """One conversation, after which stands an answer whose first ids are `begun`. seen: {key: Seen} of pictures that were
  met before; new ones are added. room: tokens that are to follow. ValueError for more columns than the network was made
  for."""
  seen = {} if seen is None else seen
  ids = model.chat.encode(model.chat.text(conversation))
  shown, sizes = [], {model.chat.image: [], model.chat.video: []}
  parts = chat.media(conversation)
  several = sum(part["type"] == "image" for part in parts) > 1
  for i, part in enumerate(parts):
    key = same(part, several)
    if key not in seen:
      seen[key] = look(model, part, several)
    shown.append((key, seen[key]))
    sizes[getattr(model.chat, part["type"])].append((i, len(seen[key].places)))
  ids, owner = chat.widened([*ids, *begun], sizes)
  if len(ids) + room > model.context:
    raise ValueError(f"conversation: {len(ids)} tokens, of which {int((owner >= 0).sum())} are pictures, and {room} of "
                     f"an answer exceed the {model.context} that the network was made for; shorten the text or "
                     "the answer's length, or give fewer or smaller pictures")
  return Row(ids, owner, shown)


def same(part: dict, several: bool) -> tuple:
  """Equal for parts that show the same."""
  shown = np.asarray(part[part["type"]])
  return part["type"], shown.shape, hashlib.blake2b(shown.tobytes()).digest(), part.get("fps"), several


def look(model: Model, part: dict, several: bool) -> pixels.Seen:
  if part["type"] == "video":
    return model.processor.video(part["video"], part.get("fps"))
  return model.processor.image(part["image"], several=several)


def batch(model: Model, rows: list, columns: int = None) -> dict:
  """Rows as arrays: tokens, mask [B P], positions [B P 3], and where there are pictures pixels [S T H W 3], extents
  [S 2], index and weights [B P K]. columns: P, by default a rounded number. ValueError where it is too small."""
  out = texts(model, rows, columns)
  seen = {key: s for r in rows for key, s in r.shown}
  return out | pictures(model, rows, out["tokens"].shape[1], rounded(sliced(seen))) if seen else out


def each(model: Model, rows: list, columns: int = None, slices: int = None, blank: bool = False) -> dict:
  """As `batch`, but every array has the axis B of conversations first, so that it can be cut and sharded: pixels
  [B S T H W 3], extents [B S 2], and index counts in a sample's own slices. slices: S, by default a rounded number.
  blank: without the pixels. ValueError where columns or slices are too few."""
  out = texts(model, rows, columns)
  seen = [s for r in rows for _, s in r.shown]
  if not seen:
    return out
  most, size = max(sliced(dict(r.shown)) for r in rows), out["tokens"].shape[1]
  slices = rounded(most) if slices is None else slices
  if slices < most:
    raise ValueError(f"slices = {slices} must be at least {most}, the pictures of a conversation; raise it")
  alone = [pictures(model, [r], size, slices, seen, blank) for r in rows]
  whole = ("pixels", "extents")
  return out | {name: np.stack([one[name] if name in whole else one[name][0] for one in alone]) for name in alone[0]}


def texts(model: Model, rows: list, columns: int | None) -> dict:
  """tokens, mask and, of networks that have them, positions in three axes."""
  longest = max(len(r.ids) for r in rows)
  size = rounded(longest, LEAST) if columns is None else columns
  if size < longest:
    raise ValueError(f"columns = {size} must be at least {longest}, the longest conversation; raise it")
  fill = lambda value: np.full((len(rows), size), value, np.int32)
  tokens, mask, place = fill(model.chat.pad), fill(0).astype(bool), np.stack([fill(0)] * 3, -1)
  for i, r in enumerate(rows):
    n = len(r.ids)
    tokens[i, :n], mask[i, :n] = r.ids, True
    place[i, :n] = chat.positions(r.owner, [s.grid for _, s in r.shown], [step(model, s) for _, s in r.shown])
  return {"tokens": tokens, "mask": mask, **({"positions": place} if model.net.lm.sections else {})}


def step(model: Model, seen: pixels.Seen) -> float:
  """Positions from one time of a clip to the next."""
  return model.seconds * seen.seconds if model.seconds and seen.seconds else 1.0


def sliced(seen: dict) -> int:
  """How many slices pictures {key: Seen} have."""
  return sum(len(s.pixels) for s in seen.values())


def pictures(model: Model, rows: list, columns: int, slices: int, beside: list = (), blank: bool = False) -> dict:
  """The slices of all pictures of the rows once each, in `slices` places, and where every column finds its own. beside:
  further ones that must find room in the same grid. blank: without the pixels."""
  seen = {key: s for r in rows for key, s in r.shown}
  fitting = [*seen.values(), *beside]
  cells, sides = grid(model, fitting)
  temporal, taps = fitting[0].pixels.shape[1], max(s.places.shape[1] for s in fitting)
  image = np.zeros((0 if blank else slices, temporal, *sides, 3), np.float32)
  extents, first, count = np.zeros((slices, 2), np.int32), {}, 0
  for key, s in seen.items():
    at = slice(count, count + len(s.pixels))
    extents[at] = s.extent
    if not blank:
      image[at, :, :s.pixels.shape[2], :s.pixels.shape[3]] = s.pixels
    first[key], count = count, count + len(s.pixels)
  index, share = np.zeros((len(rows), columns, taps), np.int32), np.zeros((len(rows), columns, taps), np.float32)
  for i, r in enumerate(rows):
    for which, (key, s) in enumerate(r.shown):
      at, k = np.flatnonzero(r.owner == which), s.places.shape[1]
      index[i, at, :k], share[i, at, :k] = flat(s.places, first[key], cells, slices), s.weights
  return {**({} if blank else {"pixels": image}), "extents": extents, "index": index, "weights": share}


def grid(model: Model, seen: list) -> tuple[tuple, tuple]:
  """Merged cells (rows, columns) of all slices of a batch, and their pixels (height, width)."""
  if isinstance(model.net.tower, Siglip):   # crops, of which all are of one size
    return seen[0].extent, seen[0].pixels.shape[2:4]
  cell = model.processor.patch * model.processor.merge
  alike = len({s.extent for s in seen}) == 1  # as pictures of one generator are, which then need no room
  cells = seen[0].extent if alike else tuple(rounded(max(s.extent[i] for s in seen), 4) for i in (0, 1))
  return cells, tuple(cell * n for n in cells)


def flat(places: np.ndarray, first: int, cells: tuple, slices: int) -> np.ndarray:
  """Places (slice, row, column) as rows of all features, of which the last is the newline."""
  at = ((places[..., 0] + first) * cells[0] + places[..., 1]) * cells[1] + places[..., 2]
  return np.where(places[..., 0] < 0, slices * cells[0] * cells[1], at)


# --- what the network makes of them ----------------------------------------------------------------------------------


def features(net: Any, params: dict, arrays: dict) -> Any:
  """What the tower makes of the slices of `batch`, [S Mh Mw width], or of `each`, [B S Mh Mw width]; None without."""
  if "pixels" not in arrays:
    return None
  image, extents = arrays["pixels"], arrays["extents"]
  whole = lambda a: a.reshape(-1, *a.shape[extents.ndim - 1:])
  found = net.apply({"params": params}, whole(image), extents.reshape(-1, 2), method="see")
  return found.reshape(*extents.shape[:-1], *found.shape[1:])


def prompt(net: Any, params: dict, arrays: dict, seen: Any = None) -> decode.Prompt:
  """The embeddings of what `batch` or `each` returned; traceable, and differentiable in params and pixels. seen: its
  features, where several questions are asked about the same pictures."""
  embed = lambda *given: net.apply({"params": params}, *given, method="embed")
  seen, tokens = features(net, params, arrays) if seen is None else seen, arrays["tokens"]
  if seen is None:
    prefix = embed(tokens)
  elif seen.ndim == 4:
    prefix = embed(tokens, seen, arrays["index"], arrays["weights"])
  else:                    # each sample looks for its own among its own, wherever it lies
    prefix = jax.vmap(lambda *one: embed(one[0][None], one[1], one[2][None], one[3][None])[0])(
      tokens, seen, arrays["index"], arrays["weights"])
  return decode.Prompt(prefix, None, arrays["mask"], arrays.get("positions"))


def continued(net: Any, params: dict, arrays: dict, tokens: Any, mask: Any, shared: int = 0, seen: Any = None) -> Any:
  """[B O] float32, ln of the probability that the answer to each prompt begins with each of the tokens [O L] of which
  mask [O L] counts; traceable. The prompts are read once, and of all together their first `shared` columns; options are
  followed one after another, since each needs a cache. seen: as in `prompt`."""
  tokens, mask, length = jnp.asarray(tokens), jnp.asarray(mask), tokens.shape[1]
  given = prompt(net, params, arrays, seen)
  hidden, cache = decode.prefill(net, params, given, length if length > 1 else 0, shared)
  if length == 1:
    logits = net.apply({"params": params}, hidden, method="logits")
    return jax.nn.log_softmax(logits.astype(jnp.float32))[:, tokens[:, 0]]
  many = lambda a: jnp.broadcast_to(a, (hidden.shape[0], length))
  follow = lambda option: decode.follow(net, params, hidden, cache, many(option[0]), many(option[1])).sum(-1)
  return jax.lax.map(jax.checkpoint(follow), (tokens, mask)).T


class Speaker(NamedTuple):
  """Compiled once a size of its arguments.

  answer (params, conversations, keys [B], length, temperature, top_p) -> [Answer].
  chances (params, conversations, begun, options) -> [B O] float32, ln of the probability that the answer, which begins
  with the text `begun`, goes on with each option; of an option that begins another one, without the other's.
  """
  answer: Callable
  chances: Callable


def speaker(model: Model) -> Speaker:
  net, talk = model.net, model.chat
  read = jax.jit(lambda params, arrays, room, shared: decode.prefill(net, params, prompt(net, params, arrays), room,
                                                                     shared), static_argnums=(2, 3))
  write = jax.jit(lambda params, hidden, cache, keys, length, temperature, top_p: decode.carry_on(
    net, params, hidden, cache, keys, length=length, stop=talk.stop, pad=talk.pad, temperature=temperature,
    top_p=top_p), static_argnums=(4, 5, 6))
  weigh = jax.jit(lambda params, arrays, tokens, mask, shared: continued(net, params, arrays, tokens, mask, shared),
                  static_argnums=4)

  def filled(conversations, begun=(), room=0):
    """(the arrays of a rounded number of conversations, how many of their first columns are read once)."""
    seen = {}
    rows = [row(model, conversation, begun, seen, room) for conversation in conversations]
    shared = lowered(common(rows), LEAST) if len(rows) > 1 else 0
    return batch(model, rows + rows[:1] * (rounded(len(rows)) - len(rows))), shared

  def answer(params, conversations, keys, length=256, temperature=0.0, top_p=1.0):
    count, (arrays, shared) = len(conversations), filled(conversations, room=length)
    keys = jnp.concatenate([keys, jnp.repeat(keys[:1], len(arrays["tokens"]) - count, 0)])
    hidden, cache = read(params, arrays, length, shared)
    out = jax.device_get(write(params, hidden, cache, keys, length, temperature, top_p))
    kept = out.mask[:count].sum(1).astype(int)
    return [Answer(talk.decode(ids[:n]), ids[:n], log_prob[:n])
            for ids, log_prob, n in zip(out.tokens[:count], out.log_prob[:count], kept, strict=True)]

  def chances(params, conversations, begun, options):
    first, tokens, mask = spelled(talk, begun, options)
    arrays, shared = filled(conversations, first, tokens.shape[1])
    found = weigh(params, arrays, tokens, mask, shared)[:len(conversations)]
    return np.asarray(apart(found, tokens, mask), np.float32)

  return Speaker(answer, chances)


def spelled(talk: chat.Chat, begun: str, options: list) -> tuple[list, np.ndarray, np.ndarray]:
  """Ids with which all of begun + option start, and tokens, mask [O L] of how each goes on from there: where a text is
  cut into tokens need not be where an option begins. ValueError where an option is empty, or there twice."""
  ids = [talk.encode(begun + option) for option in options]
  if not all(options) or len(set(map(tuple, ids))) < len(ids):
    raise ValueError(f"options = {list(options)} must be texts that differ; leave out what is empty or there twice")
  shared = 0
  while all(len(one) > shared + 1 for one in ids) and len({one[shared] for one in ids}) == 1:
    shared += 1
  tokens = np.full((len(ids), max(map(len, ids)) - shared), talk.pad, np.int32)
  mask = np.zeros(tokens.shape, np.float32)
  for i, one in enumerate(ids):
    tokens[i, :len(one) - shared], mask[i, :len(one) - shared] = one[shared:], 1
  return ids[0][:shared], tokens, mask


def apart(log_p: Any, tokens: np.ndarray, mask: np.ndarray) -> Any:
  """log_p [B O] of options, each the product of its tokens' [O L] -> those of different events; traceable.

  Where one option begins another, as "1" does "10" if digits are tokens, the shorter is what is left of its probability
  when the longer ones are taken out: an answer that goes on with "1", but not with "10".
  """
  ids = [tuple(t[m > 0]) for t, m in zip(tokens, mask, strict=True)]
  begins = lambda a, b: len(a) < len(b) and b[:len(a)] == a
  longer = np.array([[begins(a, b) and not any(begins(a, c) and begins(c, b) for c in ids) for b in ids] for a in ids])
  rest = jnp.exp(log_p) - jnp.exp(log_p) @ longer.T.astype(np.float32)
  return jnp.where(longer.any(1), jnp.log(jnp.maximum(rest, 1e-30)), log_p)
