"""A policy of clips: media there and back, which frames a reward sees, what is refused, and its way through judging."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from align import evaluate, health, metrics, shard, standin
from align.build import UserError
from align.policies import diffusion
from diffusion import process
from diffusion.nets import clips, text
from rewards import diversity, mix, scenes
from rewards.core import Reward, Scores

F, SIZE = 4, 8
MEDIA = np.random.default_rng(0).integers(0, 256, (2, F, SIZE, SIZE, 3)).astype(np.uint8)
PROMPTS = ["a red circle moving left slowly", "a blue square moving up quickly"]


@pytest.fixture(scope="module")
def made():
  words = text.make(vocab=128, width=16, depth=1, heads=2)
  policy = diffusion.make(clips.make("tiny"), words, process.flow(), "flow_sde", length=8, size=SIZE, steps=3, eta=0.7,
                          frames=F)
  return policy, jax.tree.map(lambda a: 2 * a, jax.jit(policy.init)(jax.random.key(0)))


def keys_of(batch):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(batch))


def test_clips_are_encoded_and_decoded_to_what_they_were(made):
  policy, view = made
  batch = policy.prepare({"prompt": PROMPTS, "media": MEDIA})
  x = policy.embed(view, {k: v for k, v in batch.items() if k != "prompt"}, keys_of(2))["x"]
  assert x.shape == MEDIA.shape
  np.testing.assert_allclose(policy.decode(view, x), MEDIA / 255, atol=1e-6)


@pytest.mark.parametrize("frames", [(0,), (3, 0), (1, -1)])
def test_decode_makes_the_frames_that_a_reward_looks_at(made, frames):
  policy, view = made
  x = jnp.asarray(MEDIA, jnp.float32) / 127.5 - 1
  np.testing.assert_allclose(policy.decode(view, x, frames), MEDIA[:, list(frames)] / 255, atol=1e-6)
  with pytest.raises(UserError, match=r"config.reward with config.policy: frames \(0, 4\) .* -4 to 3"):
    policy.decode(view, x, (0, 4))


def test_pictures_have_no_frames_to_choose():
  x = jnp.zeros((2, toy.SIDE, toy.SIDE, 1))
  assert toy.policy().decode({}, x, (0, 7)).shape == x.shape


def test_replay_gives_the_log_probs_of_the_rollout(made):
  policy, view = made
  cond = policy.prepare({"prompt": PROMPTS})["cond"]
  roll = jax.jit(lambda view: policy.sample(view, cond, keys_of(2), keep=jnp.arange(3)))(view)
  assert roll.x.shape == (2, 3, F, SIZE, SIZE, 3) and roll.output.shape == MEDIA.shape
  again = jax.jit(policy.replay)(view, roll)
  np.testing.assert_allclose(again.log_prob, roll.log_prob, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("change, words", [
  (lambda m: m[:, :3], "3 x 8 x 8 x 3, but the policy makes 4 x 8 x 8 x 3 (frames x height x width x channels)"),
  (lambda m: m[:, 0], "8 x 8 x 3, but the policy makes 4 x 8 x 8 x 3"),
  (lambda m: m[..., :1], "config.policy.channels, config.policy.frames agree")])
def test_media_of_another_shape_are_refused(made, change, words):
  with pytest.raises(UserError) as error:
    made[0].prepare({"prompt": PROMPTS, "media": change(MEDIA)})
  assert words in str(error.value)


def look(frames=None):
  """A reward that says which values it was shown."""
  def score(view, batch, media, keys):
    return Scores(media.mean((1, 2, 3, 4)), {"count": np.full(len(media), media.shape[1])}, np.ones(len(media), bool))
  return Reward(lambda key: {}, lambda batch: batch, score, "host", frames)


def test_an_evaluation_samples_judges_and_shows_clips(made):
  policy, view = made
  records = [{"prompt": p, "meta": {}} for p in PROMPTS]
  source = toy.Source(2, lambda i: records[i], "prompts")
  mesh = shard.mesh()
  images, _ = evaluate.sample_all(policy, view, source, samples=3, batch=8, seed=0, mesh=mesh)
  assert images.shape == (2, 3, F, SIZE, SIZE, 3) and images.dtype == np.uint8
  mixed = mix.make({"a": look((0,)), "b": look((3,))})
  rewards = {"all": (look(), {}), "ends": (look((0, -1)), {}), "both": (mixed, {})}
  found = evaluate.judge(rewards, images, records, batch=8, seed=0, mesh=mesh)
  mean = lambda which: images[:, :, which].mean((2, 3, 4, 5)) / 255
  assert (found["all/count"] == F).all() and (found["ends/count"] == 2).all()
  np.testing.assert_allclose(found["ends/total"], mean([0, 3]), rtol=1e-5)
  np.testing.assert_allclose(found["both/total"], mean([0]) + mean([3]), rtol=1e-5)
  shown = metrics.grid(images.reshape((-1, *images.shape[2:])))
  assert shown.shape == (6 * (SIZE + 1) - 1, F * (SIZE + 1) - 1, 3)  # a row a clip
  assert {"motion", "static_fraction"} <= set(health.monitors(images))
  assert np.isfinite(diversity.pixels().measure(images, [{}] * 2, np.ones((2, 3), bool))).all()


def test_a_plan_knows_the_shape_of_clips():
  size = {"size": 8, "channels": 3}
  assert standin.picture({"policy": {**size, "frames": 4}}) == (4, 8, 8, 3)
  assert standin.picture({"policy": {**size, "frames": 0}}) == standin.picture({"reward": size}) == (8, 8, 3)


def test_diversity_of_clips_is_that_of_where_things_are_and_how_large():
  world = scenes.make_world(most=1)
  media, _, specs = scenes.clip.batch(0, 0, 40, frames=6, world=world)
  spec = specs[0]
  clip = lambda i: np.stack([media[i], media[i]])[None]
  measure = lambda images, right: diversity.scenes().measure(images, [spec], np.array([right]))
  assert measure(clip(0), [True, True]).tolist() == [0] and np.isnan(measure(clip(0), [True, False])).all()
  moved = np.roll(media[0], 2, axis=2 if spec["motion"][0]["direction"] in ("up", "down") else 1)
  found = measure(np.stack([media[0], moved])[None], [True, True])
  np.testing.assert_allclose(found, (2 / 16 / np.sqrt(2)) / 2, atol=0.01)  # of place and size
