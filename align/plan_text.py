"""A plan (align/plan.py) as text for people and as a record that a later plan is compared with; nothing is computed."""
from typing import Any

from align.build import table
from align.topology import GIB

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def text(plan: Any, remedy: tuple | None = None) -> str:
  """What --plan shows. remedy: overrides under which it fits and the plan that they give, where it does not."""
  axes = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items())
  held = [(what, size(device), size(over)) for what, (device, over) in plan.held.items() if over]
  held.append(("together", size(plan.stays()), size(sum(o for _, o in plan.held.values()))))
  rows = [("program", "temporaries", "peak", "FLOP", "traffic", "compiled in"), *map(row, plan.programs)]
  donated = [] if plan.donated is None else [f"an update writes {plan.donated:.0%} of the state in place"]
  notes = [largest(plan), copies(plan), *donated, verdict(plan, remedy)]
  return "\n\n".join([f"{plan.topology}: {plan.devices} devices, {axes}",
                      table([("what stays", "a device", "in all"), *held]), table(rows), "\n".join(notes)])


def row(program: Any) -> tuple:
  if program.wanted is not None:
    wants = f"wants {size(program.wanted)}" if program.wanted else "wants too much"
    return program.name, "", wants, count(program.flops), "", f"{program.seconds:.0f} s"
  return (program.name, size(program.temporaries), size(program.peak), count(program.flops), size(traffic(program)),
          f"{program.seconds:.0f} s")


def traffic(program: Any) -> int:
  """Bytes of the arrays that a device's collectives work on."""
  return sum(c.bytes * c.times for c in program.traffic)


def largest(plan: Any) -> str:
  """The largest single array that is gathered, reduced or moved: above a layer's size, something is not cut."""
  every = [(c.bytes, c, p.name) for p in plan.programs for c in p.traffic]
  if not every:
    return "no collectives"
  _, one, name = max(every, key=lambda found: found[0])
  return f"largest collective: {one.kind} of {size(one.bytes)} in {name}" + (f", {one.where}" if one.where else "")


def copies(plan: Any) -> str:
  """Arrays that every device holds whole for a moment, where it had a part of them before and has one afterwards."""
  every = [(c.bytes, c, p.name) for p in plan.programs for c in p.copies]
  if not every:
    return "no array is copied whole between two layouts"
  _, one, name = max(every, key=lambda found: found[0])
  return (f"copied whole between two layouts: {len(every)} arrays, the largest of {size(one.bytes)} in {name}, "
          f"{one.where}")


def verdict(plan: Any, remedy: tuple | None) -> str:
  if plan.limit is None:
    worst = max(plan.programs, key=lambda p: p.peak)
    return f"the peak is {size(worst.peak)} a device, in {worst.name}"
  lacking = [p for p in plan.programs if p.wanted is not None or p.peak > plan.limit]
  if not lacking:
    worst = max(plan.programs, key=lambda p: p.peak)
    return f"it fits: the peak is {size(worst.peak)} of {size(plan.limit)} a device, in {worst.name}"
  said = f"it does not fit: {'; '.join(over(p, plan.limit) for p in lacking)}"
  if remedy is None:
    return said + "; none of remat, more micro batches, cutting the parameters over all devices and adapters helps: " \
                  "take more devices, or smaller batches or pictures"
  flags, found = remedy
  shown = " ".join(f"--{flag}" if " " not in flag else f"'--{flag}'" for flag in flags)
  worst = max(found.programs, key=lambda p: p.peak)
  return f"{said}\nit fits with {shown}: the peak is then {size(worst.peak)}, in {worst.name}"


def short(plan: Any) -> str:
  """One line of a plan that does not fit."""
  if plan.stays() > plan.limit:
    return f"{plan.topology}: {size(plan.stays())} stay on a device, of {size(plan.limit)}"
  return f"{plan.topology}: {over(plan.programs[-1], plan.limit)}"


def over(program: Any, limit: float) -> str:
  needs = program.peak if program.wanted is None else program.wanted
  if not needs:
    return f"{program.name} needs more than the {size(limit)} of a device"
  return f"{program.name} needs {size(needs)} of {size(limit)}, {size(needs - limit)} too much"


def size(n: float) -> str:
  return f"{n / GIB:.2f} GiB" if abs(n) >= 0.01 * GIB else f"{n / 2 ** 20:.2f} MiB"


def count(n: float) -> str:
  unit, letter = next(((u, name) for u, name in UNITS if n >= u), (1, ""))
  return f"{n / unit:.3g} {letter}".strip() if n else "0"


def record(plan: Any) -> dict:
  """The numbers of a plan: bytes of a device, flops over all of them, None where there are none for lack of room."""
  numbers = {p.name: {"peak": None if p.wanted is not None else int(p.peak), "flops": int(p.flops),
                      "traffic": int(traffic(p))} for p in plan.programs}
  return {"topology": plan.topology, "mesh": plan.mesh, "fits": plan.fits(),
          "held": {what: int(device) for what, (device, _) in plan.held.items()},
          "donated": None if plan.donated is None else round(plan.donated, 3), "programs": numbers}
