"""A text file with one prompt a line: all that on-policy alignment needs.

A line may also be a JSON object, {"prompt": "two red balls", "category": "counting"}: the rest becomes `meta`, which
rewards that check a claim read. Blank lines are ignored.
"""
from align.build import UserError
from align.data import Source, Unreadable, clean, existing
from align.datasets import jsonl


def make(path: str) -> Source:
  """Records {"prompt", "meta"} of the file at `path`.

  Raises: UserError if it does not exist or holds no prompt. A line that is not UTF-8, or starts with { and is not JSON,
    is Unreadable, by its number.
  """
  file = existing(path, "file")
  lines = [(number, line) for number, line in enumerate(file.read_bytes().splitlines(), 1) if line.strip()]
  if not any(clean(line.decode("utf-8-sig", "replace")) for _, line in lines):
    raise UserError(f"prompt file {str(file)!r} is empty; one prompt a line is needed: write some or correct the path")

  def record(index):
    number, line = lines[index]
    if line.lstrip().startswith(b"{"):
      return jsonl.parse(line, number, file.parent.resolve())
    try:
      text = clean(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
      raise Unreadable(f"line {number}: not UTF-8 ({error})") from None
    if not text:
      raise Unreadable(f"line {number}: only characters that cannot be seen")
    return {"prompt": text, "meta": {}}

  return Source(len(lines), record, str(file))
