import numpy as np
import pytest

from normforge.search.surrogate import Surrogate


def layers(seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors on an arc with some noise and random signs, z, and scores that depend on both."""
    rng = np.random.default_rng(seed)
    angle, z = rng.uniform(0, np.pi / 2, number), rng.uniform(0, 1.5, number)
    vectors = np.zeros((number, 40)) + 0.02 * rng.standard_normal((number, 40))
    vectors[:, 0] += np.cos(angle)
    vectors[:, 1] += np.sin(angle)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) * rng.choice([-1, 1], (number, 1))
    return vectors.astype(np.float32), z, 1.2 + (angle - 0.5) ** 2 + 0.1 * z + 0.01 * rng.standard_normal(number)


@pytest.fixture(scope="module")
def fitted() -> Surrogate:
    return Surrogate(*layers(0, 25))


def test_the_ranking_follows_the_scores(fitted):
    vectors, z, scores = layers(1, 100)
    ranked = fitted.rank(vectors, z)
    assert sorted(ranked) == list(range(100))
    assert scores[ranked[:10]].mean() < np.quantile(scores, 0.2)
    assert scores[ranked[:50]].mean() < np.median(scores) < scores[ranked[50:]].mean()


def test_signs_of_gamma_and_repetition_change_nothing(fitted):
    vectors, z, _ = layers(1, 100)
    known, *rest = layers(0, 25)
    assert Surrogate(-known, *rest).rank(-vectors, z) == fitted.rank(vectors, z)


def test_the_unknown_improves_on_what_is_known_to_be_bad(fitted):
    vectors, z, scores = layers(0, 25)
    bad = int(np.argmax(scores))
    unknown = np.zeros((1, 40), np.float32)
    unknown[0, 7] = 1
    assert fitted.expected_improvement(unknown, z[[bad]]) > fitted.expected_improvement(vectors[[bad]], z[[bad]])


def test_two_layers_of_one_score_are_enough():
    vectors, z, _ = layers(0, 3)
    surrogate = Surrogate(vectors[:2], np.zeros(2), np.ones(2))
    assert np.isfinite(surrogate.expected_improvement(vectors, z)).all()
