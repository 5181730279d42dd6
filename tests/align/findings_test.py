"""The report's parts about collections and examinations."""
import numpy as np

from align import findings

AUDIT = {"right": {"share": 0.98, "interval": [0.95, 1.0], "count": 90}}
WAY = {"pairs": 286, "dropped": {"undecided": 95, "unscored": 0, "close": 99}, "audit": AUDIT}


def test_a_collection_is_a_row_for_each_way():
  few = {"right": {"share": None, "interval": None}, "better": {"share": 1.0, "interval": None, "count": 1}}
  way = {**WAY, "pairs": 480, "dropped": {"undecided": 0}, "audit": few}
  page = findings.collected({"collected": {"pairs": {"prompts": 480, "ways": {"two_stage": WAY, "random": way}},
                                           "labels": {"prompts": 2400, "ways": {"point": {**WAY, "audit": None}},
                                                      "seconds": {"sampling": 1200.04, "judging": 3.0}}}})
  assert page.count("<tr>") == 4 and "<td>pairs</td><td>two_stage</td><td>480</td><td>286</td>" in page
  assert "<td>95 undecided, 99 close</td><td>0.980<small>0.950 to 1.000</small></td><td>–<small></small></td>" in page
  none = "<small></small></td>"
  assert f"<td>random</td><td>480</td><td>480</td><td>–</td><td>–{none}<td>1.000{none}" in page and "2,400" in page
  assert "labels: sampling 1,200.0 s, judging 3.0 s</p>" in page and "pairs: sampling" not in page
  assert findings.collected({}) == findings.collected({"collected": {}}) == ""


def test_an_examination_is_a_row_and_its_first_examples():
  black, grey = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 128, np.uint8)
  results = {"examined": {
    "told": {"scores": {}, "means": {"told/right": 0.25}},
    "asked": {"accuracy": 0.5, "scores": {"colour": {"accuracy": 0.4}, "side": {"accuracy": 0.6}}}, "old": {}}}
  page = findings.examined(results, {
    "told": {"said": ["a <red> one"] * 6, "media": np.repeat(grey, 6, 0), "made": np.repeat(black, 6, 0)},
    "asked": {"said": ["red"], "prompt": ["which?"], "right": np.array([True]),
              "media": np.concatenate([black, grey, grey])[None], "shown": np.array([2])}})
  assert "<td>told</td><td>0.250</td><td>–</td><td>–</td><td>–</td>" in page
  assert "<td>asked</td><td>–</td><td>0.500</td><td>0.400</td><td>0.600</td>" in page
  told, asked = page.split("<h3>")[1:]
  assert told.startswith("told") and told.count("a &lt;red&gt; one") == findings.EXAMPLES < 6
  assert told.count("shown: not judged") == told.count("painted: not judged") == findings.EXAMPLES
  assert asked.count("<img") == 2 < findings.PICTURES and "which?" in asked and "✓" in asked and "✕" not in asked
  assert "irst examples" in page and "irst examples" not in findings.examined(results, {})
  assert findings.examined({}, {}) == ""
