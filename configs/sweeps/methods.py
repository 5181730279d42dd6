"""What the sweeps over methods share."""

ARM = lambda name: ["arms", name, "overall", "rate"]
COLUMNS = {
  "base": ARM("base"), "control": ARM("control"), "aligned": ARM("aligned"),
  "gain over control": ["differences", "aligned - control", "overall", "difference"],
  "diversity kept": ["diversity_ratio", "value"],
}
STAGES = ("reward", "judge", "base", "control")


def stages(has_pairs: bool, seed: int, names: tuple = STAGES) -> dict:
  """Where the stages lie that all runs of a seed have in common."""
  return {name: f"common/{seed}/{name}" for name in (*names, *(["pairs"] if has_pairs else []))}
