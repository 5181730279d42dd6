"""A public vision-language model as a Policy: answers to questions about pictures, over diffusion/vlm.py.

  policy = {"name": "chat", "model": DIR}

A question is the `prompt`, asked as a user's turn through the checkpoint's chat template, behind the pictures of
`media`, [B H W 3] or several [B n H W 3], bytes or floats in [0, 1]; a data set without media asks in words alone.
Where `shown` [B] is in the batch, only so many of a sample's pictures are there. Texts to learn from are `caption`
(supervised), and `win` and `lose` of pairs, strings as in autoregressive.py; an answer ends with the template's end of
a turn. Two entries of every record's meta make supervised training denser:

  more   [question, answer, question, answer ...] that follow the caption in one conversation: all answers are learned,
         the questions between them are read only, as tokens below 0 (decode.spoken)
  cells  a text for each token of the pictures, such as "red circle", or []: log-probabilities count these words too,
         each read at the column of its token, from which a tower learns to see that does not learn it from answers

Questions and answers are padded to `columns` and `length`. Where data are of several kinds these may be several sizes:
a batch takes the smallest that holds its longest, and every size is compiled once. With data whose kinds are kept
apart (config.alike) little is padded then. Processes do not know each other's longest, so several take the largest.

Stored rollouts hold the float32 pixels of every sample. Left out: clips, drawing several turns, several conversations
packed into one row.
"""
from typing import Callable

import jax
import numpy as np

from align.build import UserError, blame
from align.core import Policy
from align.policies.autoregressive import check_answers, over, texts
from align.policies.public import check_held
from diffusion import chat, decode, vlm

WORDS = 2  # tokens that name what a picture's token shows


def make(model: str, question: str = None, columns: int | tuple[int, ...] = 512,
         length: int | tuple[int, ...] = 64, temperature: float = 1.0, top_p: float = 1.0, dtype: str = "float32",
         param_dtype: str = "float32", remat: bool | str = False, states: bool = False) -> Policy:
  """model: a folder in transformers' layout.

  Args:
    question: asked of every sample, so that the `prompt` is its answer where there is no caption; None: the prompt is
      the question.
    columns: that a question takes at most, pictures and template included. length: the most tokens of an answer with
      its end, or of all answers and the questions between. Of both one size or several, from small to large, see above.
    temperature, top_p, states: as in autoregressive.py. dtype: what the network computes in; param_dtype: what
      parameters are held in that are not trained. remat: see layers.remat.
  """
  columns, lengths = sizes_of("columns", columns), sizes_of("length", length)
  widest, length = columns[-1], lengths[-1]
  decode.check(length, temperature, top_p)
  check_held(param_dtype)
  if not temperature > 0:
    raise ValueError(f"policy: temperature = {temperature} must be positive, since greedy tokens have no density; 1 is "
                     "the network's own distribution")
  opened = vlm.open_(model, dtype=dtype, remat=remat)
  net, talk = opened.net, opened.chat
  if widest + length > opened.context:
    raise ValueError(f"columns + length = {widest} + {length} must not exceed {opened.context}, which the network was "
                     "made for; lower one of them")

  def init(key):
    return {"net": vlm.fresh(opened, key, param_dtype)}

  def prompt(view, given):
    return vlm.prompt(net, view["net"], given)

  made = over(net, init, preparer(opened, question, columns, lengths), prompt, first=talk.pad, stop=talk.stop,
              pad=talk.pad, length=length, temperature=temperature, top_p=top_p, states=states)

  def log_prob(view, cond, x, keys, t=None):
    if "words" not in cond:
      return made.log_prob(view, cond, x, keys, t)
    ids, mask = decode.spoken(x, talk.stop)
    hidden, seen = decode.behind(net, view["net"], prompt(view, cond), ids)
    said = decode.scored(net, view["net"], hidden, seen, ids, mask, temperature)[0].sum(-1)
    return said + decode.named(net, view["net"], hidden[:, :seen.shape[1]], cond["words"])

  return made._replace(log_prob=log_prob)


def preparer(opened: vlm.Model, question: str | None, columns: tuple, lengths: tuple) -> Callable:
  """Policy.prepare: questions behind their pictures as `cond`, and the texts of answers as their tokens."""
  def prepare(batch):
    if "prompt" not in batch:
      return batch
    learned = texts(batch, "caption") or (None if question is None else batch["prompt"])
    asked = batch["prompt"] if question is None else [question] * len(batch["prompt"])
    return {**batch, **answers(opened.chat, batch, learned, lengths), "cond": questions(opened, batch, asked, columns)}

  return prepare


def answers(talk: chat.Chat, batch: dict, learned: list | None, lengths: tuple) -> dict:
  """{"x": ids [B L] of the texts to learn, "win", "lose": of pairs, of one size}, of those that there are."""
  out = {}
  for name, found in (("x", learned), ("win", texts(batch, "win")), ("lose", texts(batch, "lose"))):
    if found is not None and not isinstance(batch.get(name), np.ndarray):
      out[name] = written(talk, found, [m.get("more", ()) for m in batch.get("meta", ())] if name == "x" else (),
                          lengths)
    elif name in batch:
      check_answers(name, batch[name], lengths[-1])
      out[name] = batch[name]
  pairs = {name: out[name] for name in ("win", "lose") if isinstance(out.get(name), np.ndarray)}
  most = max((ids.shape[1] for ids in pairs.values()), default=0)
  return out | {name: np.pad(ids, ((0, 0), (0, most - ids.shape[1])), constant_values=talk.pad)
                for name, ids in pairs.items()}


def written(talk: chat.Chat, said: list, more: list, lengths: tuple) -> np.ndarray:
  """Ids [B L] of answers with what follows them in their conversations, L the smallest of `lengths` that holds them.
  UserError for one that is too long."""
  ids = [turns(talk, [text, *(more[i] if more else ())]) for i, text in enumerate(said)]
  for text, one in zip(said, ids, strict=True):
    if len(one) > lengths[-1]:
      raise UserError(f"config.policy.length = {lengths[-1]} must be at least {len(one)}, the tokens of the answer "
                      f"{text[:60]!r} with its end; raise it, or leave such answers out")
  out = np.full((len(said), holding(lengths, max(map(len, ids)))), talk.pad, np.int32)
  for i, one in enumerate(ids):
    out[i, :len(one)] = one
  return out


def questions(opened: vlm.Model, batch: dict, asked: list, columns: tuple) -> dict:
  """What the network reads of texts [B] behind the pictures of a batch, at the smallest of `columns` that holds them.
  """
  seen = {}
  with blame("config.data"):
    talks = conversations(asked, batch.get("media"), batch.get("shown"))
    rows = [vlm.row(opened, talk, seen=seen) for talk in talks]
  size = holding(columns, max(len(row.ids) for row in rows))
  with blame("config.policy.columns"):
    one_shape = "shown" in batch and len(columns) == 1  # however many are there
    cond = vlm.each(opened, rows, size, np.shape(batch["media"])[1] if one_shape else None)
  metas = batch.get("meta") or [{}]
  if all("cells" in m for m in metas):
    cond["words"] = words(opened.chat, rows, [m["cells"] for m in metas], size)
  return cond


def sizes_of(name: str, given: int | tuple) -> tuple:
  """From small to large; of several processes the largest alone. ValueError for anything else."""
  found = tuple(given) if isinstance(given, (list, tuple)) else (given,)
  whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in found)
  if not found or not whole or sorted(set(found)) != list(found):
    raise ValueError(f"policy: {name} = {given!r} must be a positive whole number, or several from small to large; "
                     "correct it")
  return found[-1:] if jax.process_count() > 1 else found


def holding(sizes: tuple, count: int) -> int:
  """The smallest size that holds so many, or the largest of all."""
  return next((size for size in sizes if size >= count), sizes[-1])


def conversations(asked: list, media: np.ndarray | None, count: np.ndarray | None = None) -> list:
  """[B] conversations of one turn: the sample's pictures, the first count [B] of them where given, then the question.
  """
  shown = [[] for _ in asked] if media is None else [pictures(one) for one in np.asarray(media)]
  kept = shown if count is None else [seen[:n] for seen, n in zip(shown, count, strict=True)]
  return [[{"role": "user", "content": [*seen, {"type": "text", "text": text}]}]
          for seen, text in zip(kept, asked, strict=True)]


def turns(talk: chat.Chat, said: list) -> list:
  """Ids of [answer, question, answer ...], each answer with its end; what the template writes between one answer and
  the next, the question included, stands there as ~id. UserError where they do not begin and end with an answer, or the
  template changes earlier turns."""
  if len(said) % 2 == 0:
    raise UserError(f"data entry 'more' has {len(said) - 1} texts, but it goes on with a question and its answer, and "
                    "so on; give an even number")
  out = []
  for i, text in enumerate(said):
    if i % 2 == 0:
      out += [*talk.encode(chat.escaped(text, talk.special)), talk.stop[0]]
    else:
      out += [~token for token in between(talk, said[i - 1], text)]
  return out


def between(talk: chat.Chat, answer: str, question: str) -> list:
  """Ids from behind the end of an answer to where the next one begins."""
  begun = [{"role": "user", "content": "-"}]
  before = talk.text(begun) + chat.escaped(answer, talk.special)
  whole = talk.text([*begun, {"role": "assistant", "content": answer}, {"role": "user", "content": question}])
  ids = talk.encode(whole[len(before):])
  if not whole.startswith(before) or ids[:1] != [talk.stop[0]]:
    raise UserError("data entry 'more': this checkpoint's chat template does not go on where an answer ended, so that "
                    "several turns cannot be learned at once; leave `more` out")
  return ids[1:]


def words(talk: chat.Chat, rows: list, cells: list, columns: int) -> np.ndarray:
  """int32 [B columns WORDS]: ids of what cells [B] of texts name, at the columns of the pictures' tokens, else -1.
  UserError where there are not as many texts as tokens, or one has more than WORDS tokens."""
  out = np.full((len(rows), columns, WORDS), -1, np.int32)
  for i, (row, texts_) in enumerate(zip(rows, cells, strict=True)):
    at = np.flatnonzero(row.owner >= 0)
    if texts_ and len(texts_) != len(at):
      raise UserError(f"data entry 'cells' has {len(texts_)} texts, but the pictures take {len(at)} tokens; each needs "
                      "its own: change config.data.cells")
    for column, text in zip(at, texts_, strict=False):
      ids = talk.encode(f" {chat.escaped(text, talk.special)}")
      if len(ids) > WORDS:
        raise UserError(f"data entry 'cells': {text!r} takes {len(ids)} tokens, but at most {WORDS} can be read at a "
                        "column; shorten it, or give the model's tokenizer its words")
      out[i, column, :len(ids)] = ids
  return out


def pictures(media: np.ndarray) -> list:
  """The parts of one sample's media, [H W 3] or [n H W 3]."""
  media = media if np.issubdtype(media.dtype, np.integer) else np.rint(255 * np.clip(media, 0, 1))
  return [{"type": "image", "image": image.astype(np.uint8)} for image in (media[None] if media.ndim == 3 else media)]
