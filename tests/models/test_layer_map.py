from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.errors import ConfigError
from raydistill.models.layer_map import choose_layers, closest_layers, layer_map


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "expected"),
    [
        (6, 12, (0, 2, 4, 7, 9, 11)),  # DistilBERT's own choice
        (5, 12, (0, 3, 6, 8, 11)),  # trap 14: no multiple
        (3, 6, (0, 3, 5)),
        (2, 6, (0, 5)),
        (1, 6, (0,)),
        (4, 4, (0, 1, 2, 3)),
    ],
)
def test_layers_to_start_from(num_student: int, num_teacher: int, expected: tuple[int, ...]) -> None:
    assert choose_layers(num_student, num_teacher) == expected


@given(st.integers(1, 48), st.integers(1, 48), st.integers(1, 6))
def test_chosen_layers_are_in_order_and_inside_for_any_depths(num_student: int, num_teacher: int, period: int) -> None:
    num_student = min(num_student, num_teacher)
    types = ["sliding_attention" if i % period else "full_attention" for i in range(num_teacher)]
    for chosen in (choose_layers(num_student, num_teacher), choose_layers(num_student, num_teacher, types)):
        assert len(chosen) == num_student
        assert list(chosen) == sorted(set(chosen))
        assert chosen[0] == 0
        assert chosen[-1] < num_teacher


def test_global_attention_is_kept_where_layers_differ() -> None:
    modernbert = ["sliding_attention" if i % 3 else "full_attention" for i in range(22)]
    assert all(modernbert[i] == "full_attention" for i in choose_layers(6, 22, modernbert))
    kept = choose_layers(11, 22, modernbert)
    assert sum(modernbert[i] == "full_attention" for i in kept) == modernbert.count("full_attention")
    assert choose_layers(22, 22, modernbert) == tuple(range(22))


def test_more_layers_than_the_teacher_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"at most 4, or student\.start to random"):
        choose_layers(5, 4)
    with pytest.raises(ConfigError, match="at least one"):
        choose_layers(0, 4)


@pytest.mark.parametrize(
    ("layers", "num_student", "num_teacher", "expected"),
    [
        ("uniform", 4, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),  # TinyBERT4
        ("auto", 4, 12, ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))),
        ("uniform", 5, 12, ((1, 2), (2, 5), (3, 7), (4, 10), (5, 12))),
        ("uniform", 1, 6, ((1, 6),)),
        ("uniform", 6, 2, ((1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2))),
        ("last", 3, 12, ((3, 12),)),
        ("first", 3, 12, ((1, 1),)),
        (((0, 0), (2, 12)), 2, 12, ((0, 0), (2, 12))),
    ],
)
def test_layer_map(layers: object, num_student: int, num_teacher: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert layer_map(layers, num_student, num_teacher) == expected


@given(st.integers(1, 48), st.integers(1, 48))
def test_uniform_map_ends_with_both_last_layers_and_never_goes_back(num_student: int, num_teacher: int) -> None:
    pairs = layer_map("uniform", num_student, num_teacher)
    assert [m for m, _ in pairs] == list(range(1, num_student + 1))
    assert [g for _, g in pairs] == sorted(g for _, g in pairs)
    assert pairs[-1] == (num_student, num_teacher)
    assert pairs[0][1] >= 1


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
def test_the_closest_layers_are_the_best_of_all_maps_that_never_go_back(
    num_student: int, num_teacher: int, seed: int
) -> None:
    found = np.random.default_rng(seed).random((num_student + 1, num_teacher + 1))
    pairs = closest_layers(found.tolist())
    assert pairs[0] == (0, 0)
    assert [student for student, _ in pairs] == list(range(num_student + 1))
    every = combinations_with_replacement(range(1, num_teacher + 1), num_student)
    best = max(every, key=lambda layers: sum(found[i, layer] for i, layer in enumerate(layers, 1)))
    assert [teacher for _, teacher in pairs[1:]] == list(best)


def test_of_equally_close_layers_the_earlier_ones_are_taken() -> None:
    assert closest_layers([[0.5] * 4] * 3) == ((0, 0), (1, 1), (2, 1))


@pytest.mark.parametrize("pairs", [((3, 1),), ((1, 13),), ((-1, 0),), ((1,),), ()])
def test_pairs_outside_the_models_are_refused(pairs: tuple) -> None:
    with pytest.raises(ConfigError, match="pair"):
        layer_map(pairs, 2, 12)


def test_unknown_map_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, uniform, last, first"):
        layer_map("skip", 2, 12)
