"""Prompts of GenEval (2310.11513): lines of evaluation_metadata.jsonl, or of a file of that form, for reward `geneval`.

A line is {"prompt", "tag", "include", "exclude"?}. The tag, one of six tasks there, is the category that results are
listed by; GenEval's overall score is the unweighted mean of the categories. Blank lines are ignored.
"""
from align.build import UserError, blame
from align.data import Source
from align.datasets import prompts
from rewards import geneval


def make(path: str) -> Source:
  """Records {"prompt", "meta"} of the file at `path`; the meta is the line, with its tag as "category" too.

  Raises: UserError where the file does not exist, or a line is none of GenEval's."""
  plain = prompts.make(path)
  records = [lined(plain.record(i), path) for i in range(plain.size)]
  return Source(len(records), lambda i: records[i], plain.name)


def lined(record: dict, path: str) -> dict:
  with blame(f"{str(path)!r}, prompt {record['prompt']!r}"):
    spec = geneval.checked(record["meta"])
  if not isinstance(spec.get("tag"), str):
    raise UserError(f"{str(path)!r}, prompt {record['prompt']!r}: tag = {spec.get('tag')!r} must be a text, GenEval's "
                    "are single_object, two_object, counting, colors, position, color_attr; add it")
  return {**record, "meta": {**spec, "category": spec["tag"]}}
