"""Every command of the README is run by a test: here, or where COVERED says; long ones at a reduced, printed size."""
import re
import shlex
from pathlib import Path

import pytest
from commands import ROOT, command
from PIL import Image

SCENES = ("--config.runs.data.dataset.count=480", "--config.runs.evaluate.data.count=12",
          "--config.runs.evaluate.samples=2", "--config.runs.evaluate.batch=24")
QUICK = (*SCENES, "--config.runs.control.data.count=480", "--config.runs.control.steps=2",
         "--config.runs.control.evaluate.every=2", "--config.runs.control.evaluate.data.count=6",
         "--config.runs.control.evaluate.batch=24", "--config.runs.aligned.steps=2",
         "--config.runs.aligned.optim.warmup_steps=0", "--config.runs.aligned.batch=8",
         "--config.runs.aligned.group=4", "--config.runs.aligned.evaluate.every=2",
         "--config.runs.aligned.evaluate.data.count=6", "--config.runs.aligned.evaluate.batch=24")
BASE = (*SCENES, "--config.runs.train.data.count=480", "--config.runs.train.steps=2",
        "--config.runs.train.optim.warmup_steps=1")
SLOW = {  # command -> what makes it smaller
  "python -m align.main --config=configs/digits.py --plan=v5e:2x2": (),
  "python -m align.main --config=configs/scenes_base.py --workdir=runs/scenes_base": BASE,
  "python -m align.main --config=configs/quickstart.py:grpo --workdir=runs/grpo": QUICK,
  "python -m align.main --config=configs/quickstart.py --workdir=runs/smaller "
  "--config.runs.aligned.optim.lr=1e-4": QUICK,
}
FAST = {
  "python -m align.main --config=configs/quickstart.py --print": (),
  "python -m launch.tpu_vm run mine --slice=v5e:4x4 --zone=ZONE --setup=MOUNT -- --config=configs/sd15_dpo.py "
  "--workdir=PLACE": ("--dry-run",),
  'python -m diffusion.generate --model=scenes --prompt="two green triangles" --out=base.png': (),
  "python -m launch.sweep --sweep=configs/sweeps/quickstart.py --workdir=runs/sweep": ("--table",),
  "python -m launch.sweep --sweep=configs/sweeps/digits_methods.py --workdir=runs/digits_methods": ("--table",),
  "python -m launch.sweep --sweep=configs/sweeps/scenes_methods.py --workdir=runs/scenes_methods --jobs=2": (
    "--table",),
  "python -m launch.sweep --sweep=configs/sweeps/hacking.py --workdir=runs/hacking --jobs=2": ("--table",),
  "python -m launch.sweep --sweep=configs/sweeps/judge_scenes.py --workdir=runs/judge_scenes --jobs=2": ("--table",),
}
PUBLIC = (  # one after another, on a small model
  'python -m diffusion.generate --model=MODEL --prompt="a red dog" --out=dog.png',
  "python -m align.main --config=configs/sdxl_dpo.py:lora --workdir=runs/sdxl_dpo --config.model=MODEL "
  "--config.data.path=PICKAPIC",
  'python -m diffusion.generate --model=runs/sdxl_dpo --prompt="a red dog" --out=aligned.png',
  "python -m diffusion.convert export runs/sdxl_dpo --out=runs/sdxl_dpo_folder",
  "python -m diffusion.convert verify runs/sdxl_dpo_folder",
  "python -m diffusion.convert adapters runs/sdxl_dpo --out=DIR --layout=peft",
)
JUDGE = (
  'python -m rewards.judge --model=JUDGE --task=image-generation-pair --prompt="two red cubes" a.png b.png',
  'python -m rewards.judge --model=JUDGE --chat "Describe the image." a.png',
)
COVERED = {
  'pip install -e ".[serve]"': "align/serve_test.py",
  **{f"python -m align.main --config=configs/recipes/{name}.py --workdir=runs/{name}": f"recipes/{name}_test.py"
     for name in ("unified_reward", "dense_reward", "seedance", "uae")},
  **{f"python -m align.main --config=configs/recipes/{name}.py:{part} --workdir=runs/{name}_{part}":
     f"recipes/{name}_test.py" for name, part in (("unified_reward", "clip"), ("unified_reward", "answer"),
                                                  ("dense_reward", "single"), ("seedance", "single"),
                                                  ("seedance", "refiner"), ("seedance", "refiner_1"))},
  "python -m align.main --config=configs/claims.py --workdir=runs/claims": "align/claims_test.py",
  "python -m align.main --config=configs/claims.py --workdir=runs/claims --config.into=README.md "
  "--config.run_missing=False": "align/claims_test.py",
  "python -m align.serve --config=configs/quickstart.py --run=aligned": "align/serve_test.py",
  "python -m align.main --config=configs/quickstart.py --workdir=runs/far --config.runs.aligned.reward=remote":
    "align/serve_test.py",
  "python -m rewards.convert CHECKPOINT --tokenizer=WORDS --out=DIR": "rewards/convert_test.py",
  "pip install -e .": ".ci/run", 'pip install -e ".[test]"': ".ci/run", "pytest": ".ci/run",
  'pip install -e ".[cuda]"': "needs an accelerator",
  "python -m align.main --config=configs/quickstart.py --workdir=runs/quickstart": "quickstart_test.py",
  'python -m diffusion.generate --model=runs/quickstart/aligned --prompt="a red circle above a blue square" '
  "--out=samples.png": "quickstart_test.py",
  "python -m align.main --config=configs/digits.py --workdir=runs/digits": "digits_test.py",
  "python -m launch.bench all --json=bench.json": "launch/bench_test.py",
  "python -m launch.bench gpu --json=gpu.json": "launch/bench_test.py",
  "python -m diffusion.convert import FILE --out=DIR": "diffusion/convert_test.py",
}


def commands_in(text: str) -> list:
  """Commands of indented blocks and of `inline code`, each part of an && on its own."""
  lines = re.findall(r"^    (?=python |pip |pytest)(.*)$", text, re.M) + [
    " ".join(line.split()) for line in re.findall(r"`((?:pip|python) [^`]*)`", text)]
  return [part.strip() for line in lines for part in line.split("&&")]


def test_every_command_of_the_readme_is_run_somewhere():
  found = set(commands_in((ROOT / "README.md").read_text()))
  assert found == {*SLOW, *FAST, *PUBLIC, *JUDGE, *COVERED}
  assert all(where in (".ci/run", "needs an accelerator") or (ROOT / "tests" / where).is_file()
             for where in COVERED.values())


def run(line, more, where):
  arguments = shlex.split(line)
  assert arguments[:2] == ["python", "-m"]
  print("at a reduced size:", *more)
  if "launch.sweep" in line:  # it reads the file as given
    sweep = next(a for a in arguments if a.startswith("--sweep=")).partition("=")[2]
    more = (*more, f"--sweep={ROOT / sweep}", f"--records={ROOT / 'configs/records' / Path(sweep).stem}")
  place = arguments.index("--") if "--" in arguments else len(arguments)  # what follows is for another command
  code, said = command(*arguments[2:place], *more, *arguments[place:], where=where)
  assert code == 0 and "Traceback" not in said, said


@pytest.mark.parametrize("line", FAST)
def test_short_commands(line, tmp_path):
  run(line, FAST[line], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a plan compiles two dozen programs
@pytest.mark.parametrize("line", SLOW)
def test_long_commands(line, tmp_path):
  run(line, SLOW[line], tmp_path)


@pytest.mark.slow
def test_commands_for_public_models(tmp_path):
  folders, published = pytest.importorskip("folders"), pytest.importorskip("published")
  model, data = folders.sdxl(tmp_path), published.pickapic(tmp_path / "pickapic")
  small = {"align.main": published.SMALL, "diffusion.generate": ("--steps=2", "--size=32")}
  for line in PUBLIC:
    run(line.replace("MODEL", str(model)).replace("PICKAPIC", str(data)), small.get(shlex.split(line)[2], ()), tmp_path)


@pytest.mark.slow
def test_commands_for_judges(tmp_path):
  vlms = pytest.importorskip("vlms")
  (tmp_path / "judge").mkdir()
  vlms.qwen(tmp_path / "judge")
  for name in "ab":
    Image.new("RGB", (64, 48), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
  for line in JUDGE:
    run(line.replace("JUDGE", str(tmp_path / "judge")), ("--length=8",), tmp_path)


def test_the_tree_names_what_is_there():
  tree = re.search(r"## The tree\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S)[1]
  top = re.findall(r"^    (\w+)/", tree, re.M)
  assert top == ["align", "rewards", "diffusion", "configs", "launch", "tests", "notebooks"]
  assert all((ROOT / name).is_dir() for name in top)
  inside = set(re.findall(r"\b(\w+\.py)\b", tree.split("rewards/")[0]))
  there = {p.name for folder in ("align", "align/policies") for p in (ROOT / folder).glob("*.py")} - {"__init__.py"}
  assert inside == there, inside ^ there
  methods = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M)
  files = {p.stem for p in (ROOT / "align/algorithms").glob("*.py")} - {"__init__", "base"}
  assert set(methods) == files, set(methods) ^ files
  for path in re.findall(r"`((?:align|rewards|diffusion|configs|launch|notebooks|tests)/[\w./]+)`",
                         (ROOT / "README.md").read_text()):
    assert Path(ROOT / path).exists(), path
