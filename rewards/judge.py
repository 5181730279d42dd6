"""Asks a vision-language model about pictures and clips, from the command line; prints JSON.

  python -m rewards.judge --model=DIR --task=image-generation-pair --prompt="two red cubes" a.png b.png
  python -m rewards.judge --model=DIR --task=image-understanding-pair --prompt="What is it?" --answer="A cat." \
    --answer="A dog." a.png
  python -m rewards.judge --model=DIR --chat "Describe the image." a.png

DIR is a folder in transformers' layout (diffusion/vlm.py). A clip is a folder of frames, in the order of their names. A
task is a question of judging/formats.py: its whole name, or its beginning, which means the form that this family of
checkpoints was trained on; --prompts names JSON files with the exact words of a checkpoint. Pairs are asked in both
orders, with the first file as A.
"""
import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion import pictures, vlm
from rewards import unified
from rewards.judging import formats, judge, questions


def named(task: str, family: str, own: str = None) -> questions.Question:
  """The question of a name or of its beginning, for a family "qwen" or "llava". ValueError with those that begin so."""
  name = task.replace("-", "_")
  known = formats.known(own)
  for whole in (name, f"{name}_v1_{family}", f"{name}_v1", f"{name}_v2"):
    if whole in known:
      return known[whole]
  near = [key for key in known if key.startswith(name)] or list(known)
  raise ValueError(f"--task = {task!r} is not one of {', '.join(near)}; choose one of them")


def opened(path: str, medium: str) -> np.ndarray:
  """uint8 [H W 3] of a picture, [T H W 3] of a clip."""
  if medium == "image":
    return pictures.read(path)
  files = sorted(p for p in Path(path).iterdir() if p.is_file()) if Path(path).is_dir() else []
  if not files:
    raise ValueError(f"clip {path!r} must be a folder of frames, one picture each, in the order of their names; write "
                     "the clip's frames into one")
  frames = [pictures.read(file) for file in files]
  if len({frame.shape for frame in frames}) > 1:
    raise ValueError(f"clip {path!r} has frames of {len({f.shape for f in frames})} sizes; all must be of one size")
  return np.stack(frames)


def pair(answerer: judge.Answerer, view: Any, question: questions.Question, asked: questions.Asked, reading: str,
         seed: int) -> dict:
  found = judge.pair(answerer, view, question, [asked], jax.random.split(jax.random.key(seed), 1), reading)
  orders = [{"first": name, "verdict": found.verdicts[0][i], "probability_first": number(found.first[0, i]),
             **written(found.said[0][i]), "failed": found.reasons[0][i]} for i, name in enumerate("AB")]
  return {"probability_A": number(found.probability[0]), "valid": bool(found.valid[0]), "orders": orders,
          "scores_A": {name: number(part[0]) for name, part in found.parts.items()},
          "position_bias": number(found.metrics["position_bias"]), "tie": number(found.ties[0]),
          "asked_again": int(found.asked_again[0])}


def point(answerer: judge.Answerer, view: Any, question: questions.Question, asked: questions.Asked, reading: str,
          seed: int) -> dict:
  found = judge.point(answerer, view, question, [asked], jax.random.split(jax.random.key(seed), 1), reading)
  return {"score": number(found.score[0]), "valid": bool(found.valid[0]), **written(found.said[0]),
          "failed": found.reasons[0], "scores": {name: number(part[0]) for name, part in found.parts.items()},
          "asked_again": int(found.asked_again[0])}


def number(value: Any) -> float | None:
  """JSON has no nan."""
  return float(value) if math.isfinite(value) else None


def written(said: judge.Said) -> dict:
  """The text, and where one was written its token ids."""
  return {"text": said.text, **({} if said.tokens is None else {"tokens": [int(t) for t in said.tokens]})}


def check(args: argparse.Namespace) -> None:
  """Refuses what says nothing, and options that would not be heard."""
  if (args.task is None) == (args.chat is None):
    raise ValueError("--task and --chat: one of the two must be given; --task=image-generation-pair compares two "
                     "pictures, --chat=TEXT only talks")
  deaf = {"--chat": ("prompt", "answer", "prompts", "reading", "rate"), "--task": ("temperature", "top_p")}
  way = "--task" if args.chat is None else "--chat"
  for name in deaf[way]:
    if getattr(args, name) not in (None, []):
      raise ValueError(f"--{name.replace('_', '-')} = {getattr(args, name)!r} is given with {way}, which does not "
                       "listen to it; leave it out")
  for name, texts in (("--chat", [args.chat]), ("--answer", args.answer)):
    if any(text is not None and not text.strip() for text in texts):
      raise ValueError(f"{name} = '' is an empty text; write something")


def run(args: argparse.Namespace) -> dict:
  check(args)
  model = vlm.open_(args.model, dtype=args.dtype)
  params = vlm.load(model, dtype=args.dtype)
  if args.chat is not None:
    folder = next((path for path in args.files if Path(path).is_dir()), None)
    if folder:
      raise ValueError(f"{folder!r} is a folder, but --chat takes pictures only; name its files, or ask a --task")
    shown = [{"type": "image", "image": pictures.read(path)} for path in args.files]
    talk = [{"role": "user", "content": [*shown, {"type": "text", "text": args.chat}]}]
    keys = jax.random.split(jax.random.key(args.seed), 1)
    said, = vlm.speaker(model).answer(params, [talk], keys, args.length, args.temperature or 0.0, args.top_p or 1.0)
    return {"text": said.text, "tokens": said.tokens.tolist(), "log_prob": float(said.log_prob.sum())}
  family = "llava" if "Llava" in vlm.kind(model.config) else "qwen"
  question, reading = named(args.task, family, args.prompts), args.reading or "text"
  question = questions.check(question._replace(rate=args.rate or question.rate), f"question {question.name!r}")
  media = tuple(opened(path, question.medium) for path in args.files)
  asked = questions.Asked(args.prompt or "", media, tuple(args.answer))
  ask = pair if questions.two(question) else point
  found = ask(unified.answerer(model, args.length), {"net": params}, question, asked, reading, args.seed)
  return {"question": question.name, "reading": reading, **found}


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m rewards.judge", description=__doc__.splitlines()[0])
  parser.add_argument("files", nargs="*", help="pictures, or folders of a clip's frames")
  parser.add_argument("--model", required=True, help="a folder in transformers' layout")
  parser.add_argument("--task", help="what is asked, such as image-generation-pair")
  parser.add_argument("--chat", help="a message instead of a task")
  parser.add_argument("--prompt", help="the caption that media were made for, or the question about them")
  parser.add_argument("--answer", action="append", default=[], help="of understanding: once, of pairs twice")
  parser.add_argument("--prompts", help="a JSON file, or a folder of them, with further questions")
  parser.add_argument("--reading", choices=("text", "probability", "expected"), help="by default text")
  parser.add_argument("--rate", type=float, help="frames a second of clips; then about two a second are shown")
  parser.add_argument("--length", type=int, default=512, help="the most tokens of an answer")
  parser.add_argument("--temperature", type=float, help="of --chat; 0, the default, is greedy")
  parser.add_argument("--top-p", type=float, help="of --chat, by default 1")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
  args = parser.parse_args(argv)
  try:
    print(json.dumps(run(args), indent=1, ensure_ascii=False))
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
