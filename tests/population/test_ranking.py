import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from highway_jax.population import Halving, rank

values = st.one_of(st.floats(0, 10, width=32), st.sampled_from([1, 2, np.inf, np.inf]))
shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))


@st.composite
def populations(draw):
    """Training losses and a measured number, as they are where runs diverge, stop or are not evaluated."""
    loss = draw(arrays(np.float32, shape := draw(shapes), elements=values))
    measured = draw(arrays(np.float32, shape, elements=st.one_of(values, st.just(np.nan), st.just(-np.inf))))
    for row in range(len(loss)):
        end = draw(st.integers(0, shape[1]))
        loss[row, end:] = measured[row, end:] = np.nan
    return {"train_loss": loss, "valid_score": measured}


@given(populations(), st.sampled_from(["train_loss", "valid_score"]), st.sampled_from(["min", "max"]))
def test_ranking(curves, rank_by, mode):
    ranking = rank(curves, rank_by, mode)
    better = min if mode == "min" else max
    worst = np.inf if mode == "min" else -np.inf
    for run, (loss, curve) in enumerate(zip(curves["train_loss"], curves[rank_by], strict=True)):
        trained = loss[~np.isnan(loss)]
        finite = curve[np.isfinite(curve)].tolist()
        assert ranking.best[run] == better(finite, default=worst)
        assert ranking.best_epoch[run] == (curve.tolist().index(better(finite)) + 1 if finite else 0)
        assert ranking.diverged[run] == (np.inf in trained)
        assert ranking.epochs[run] == len(trained)
        assert not len(trained) or np.array_equal(ranking.final[run], curve[len(trained) - 1], equal_nan=True)
    sign = 1 if mode == "min" else -1
    keys = zip(np.isinf(ranking.best), ranking.diverged, sign * ranking.best, range(len(ranking.best)), strict=True)
    expected = [run for *_, run in sorted(keys)]
    assert ranking.order.tolist() == expected
    np.testing.assert_allclose(ranking.mean_of_best(3), ranking.best[expected[:3]].mean(), rtol=1e-6)


def test_what_cannot_be_ranked_is_refused():
    curves = {"train_loss": np.zeros((2, 1)), "valid_score": np.zeros((2, 1))}
    with pytest.raises(ValueError, match="mode is None, and rank_by is 'valid_score', which is no loss"):
        rank(curves, "valid_score")
    with pytest.raises(ValueError, match="mode is 'most'; it must be 'min' or 'max'"):
        rank(curves, mode="most")
    with pytest.raises(ValueError, match="curves has train_loss, valid_score; it must have valid_loss"):
        rank(curves, "valid_loss")


@given(populations(), st.floats(0.01, 0.99), st.integers(1, 10))
def test_halving_keeps_the_best(curves, keep, at_least):
    halving, ranking = Halving(every=1, keep=keep, at_least=at_least), rank(curves)
    kept, count = halving.kept(ranking), len(ranking.order)
    assert len(kept) == halving.num_kept(count)
    assert max(keep * count - 1e-6, min(at_least, count)) <= len(kept) <= max(keep * count + 1, min(at_least, count))
    assert kept.tolist() == sorted(ranking.order[: len(kept)].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 1.5}, "every is 1.5; it must be an integer"),
        ({"every": 1, "keep": 1}, "keep is 1"),
        ({"every": 1, "at_least": True}, "at_least is True"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Halving(**options)
