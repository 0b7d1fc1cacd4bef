"""Changes of parameters between two updates: made once, at their step, from training data, and exactly repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.fitting import fit, load, resume
from ppl_models.program import Event, Program, Training
from tests.toy import PPCA, toy_data

KEY = jax.random.key(3)


class Eventful(PPCA):
    """The toy with its scale set anew, from the data and at random, after 10 and 20 updates."""

    seen: list[tuple[int, ...]] = []

    def build(self, key: jax.Array) -> Program:
        def apply(params: Mapping[str, Any], x: jax.Array, key: jax.Array) -> dict[str, Any]:
            self.seen.append(x.shape)
            return {"s": jnp.std(x) * jnp.exp(0.1 * jax.random.normal(key))}

        events = tuple(Event(step, "setting s", apply, size=100) for step in (10, 20))
        return dataclasses.replace(super().build(key), training=Training(events=events))


def leaves(fitted: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(fitted.params)]


def test_events_happen_once_at_their_step_on_training_data() -> None:
    Eventful.seen.clear()
    x = toy_data()
    with pytest.warns(UserWarning, match="due after 20 updates, this fit makes 11"):
        still = fit(Eventful().build(KEY), x, steps=11, batch_size=32, learning_rate=1e-12, key=KEY, progress=False)
    assert Eventful.seen == [(100, 4)]
    assert float(still.params["s"]) == pytest.approx(np.std(x), rel=0.35) and float(still.params["s"]) != 1.0
    short = fit(PPCA().build(KEY), x, steps=11, batch_size=32, learning_rate=1e-12, key=KEY, progress=False)
    np.testing.assert_allclose(still.params["W"], short.params["W"])


def test_no_more_data_than_there_are_and_the_average_starts_anew() -> None:
    Eventful.seen.clear()
    fitted = fit(
        Eventful().build(KEY), toy_data(40), steps=21, batch_size=32, learning_rate=1e-12, average=0.9999, key=KEY,
        progress=False,
    )  # fmt: skip
    assert Eventful.seen == [(32, 4), (32, 4)]
    assert float(fitted.params["s"]) > 1.2  # the average of 21 updates of a value that began at 1 would lag behind


def test_a_resumed_run_repeats_its_events_exactly(tmp_path: Path) -> None:
    from ppl_models.program import register

    register("test_eventful", Eventful, presets={"tiny": Eventful()}, paper="none")
    x, arguments = toy_data(), {"batch_size": 32, "learning_rate": 0.01, "key": KEY, "progress": False}
    whole = fit(Eventful().build(KEY), x, steps=30, **arguments)
    with pytest.warns(UserWarning, match="setting s is due after 20 updates, this fit makes 20"):
        fit(Eventful().build(KEY), x, steps=20, checkpoint_every=10, out=tmp_path / "run", **arguments)
    again = resume(tmp_path / "run", x, steps=30, progress=False)
    assert all((a == b).all() for a, b in zip(leaves(whole), leaves(again), strict=True))
    assert load(tmp_path / "run").info["steps"] == 30


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t": jnp.ones(())}, "changes 't'; this program has W, b, s"),
        ({"W": jnp.ones((2, 2))}, r"shapes \(2, 2\), expected \(4, 2\)"),
        ({"s": jnp.asarray(jnp.nan)}, "not finite"),
    ],
)
def test_an_event_that_changes_what_it_must_not_is_refused(changed: dict[str, Any], message: str) -> None:
    program = dataclasses.replace(
        PPCA().build(KEY), training=Training(events=(Event(0, "breaking", lambda p, x, k: changed),))
    )
    with pytest.raises(ValueError, match=message):
        fit(program, toy_data(), steps=2, batch_size=32, key=KEY, progress=False)


def test_an_event_needs_a_time() -> None:
    with pytest.raises(ValueError, match="step >= 0"):
        Event(-1, "before", lambda p, x, k: {})
