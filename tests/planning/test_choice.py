"""Which training is chosen, of invented rows and invented times."""

import pytest
from plan_rows import EDST, RIGL, row, some_rows

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.resolve import resolve
from sparse_engine.planning.candidates import candidate
from sparse_engine.planning.choice import Expected, Priced, at_length, choose
from sparse_engine.planning.words import as_json, expectation, extrapolations, reason

DENSE = resolve(Config(method="dense", model="wrn10-2", epochs=100, dense_epochs=100))


def priced(rows, *epochs):
    """Return candidates of a dense run of 100 epochs; an epoch takes so many seconds."""
    return [
        Priced(candidate(row, DENSE, 1437), seconds / 11, seconds)
        for row, seconds in zip(rows, epochs, strict=True)
    ]


def chosen(rows, epochs, seconds):
    choice = choose(priced(rows, *epochs), seconds)
    return choice.chosen, choice


def test_the_best_that_fits():
    rows = [row(), row(RIGL, -0.01, 0.003), row(EDST, 0.01, 0.002, 450)]
    option, choice = chosen(rows, (1.0, 0.4, 0.5), 90)
    assert option.priced.candidate.row == rows[2]
    assert (option.epochs, option.seconds, option.share) == (180, 90, 1)
    assert choice.equal == ()
    assert "of the 2 that fit, it has the highest expected accuracy (+1.00 ± 0.20" in reason(choice)
    option, choice = chosen(rows, (1.0, 0.4, 0.5), 89.9)
    assert option.priced.candidate.row == rows[1]
    assert not choice.all_shortened


def test_within_one_standard_error_the_cheapest():
    rows = [row(), row(RIGL, -0.002, 0.003), row(EDST, 0.004, 0.005, 450)]
    option, choice = chosen(rows, (1.0, 0.4, 0.6), 110)
    assert choice.best.priced.candidate.row == rows[2]
    # Of both sparse trainings together: the dense run has none to itself.
    assert choice.error == pytest.approx(((0.003**2 + 0.005**2) / 2) ** 0.5)
    assert option.priced.candidate.row == rows[0]
    assert [o.priced.candidate.row for o in choice.equal] == [rows[0]]
    words = "within one standard error (0.41 points) of that, and takes the fewest seconds"
    assert words in reason(choice)
    option, _ = chosen([row(), row(RIGL, -0.002, 0.003)], (1.0, 0.4), 100)
    assert option.priced.candidate.row.settings == RIGL
    option, _ = chosen([row(), row(RIGL, -0.0031, 0.003)], (1.0, 0.4), 100)
    assert option.priced.candidate.row.is_dense


def test_an_uncertain_training_is_not_equal_for_that():
    others = [row({**RIGL, "sparsity": s}, -0.05, 0.001) for s in (0.5, 0.6, 0.7)]
    rows = [row(), row(RIGL, -0.007, 0.008), *others]
    option, _ = chosen(rows, (1.0, 0.4, 0.4, 0.4, 0.4), 100)
    assert option.priced.candidate.row.is_dense


def test_of_many_as_good_a_few_are_named():
    rows = [row(), *(row({**RIGL, "sparsity": s / 10}, -0.001, 0.003) for s in range(1, 8))]
    _, choice = chosen(rows, (1.0, *([0.4] * 7)), 100)
    words = "(rigl, 0.2, 16x16 (100 epochs), rigl, 0.3, 16x16 (100 epochs), rigl, 0.4, 16x16 (100 "
    assert f"{words}epochs), 3 more too), and takes" in reason(choice)


def test_a_dense_network_has_any_length_between_two_that_were_tried():
    rows = [row(), row(difference=-0.012, error=0.002, epochs=125), row(RIGL, -0.02, 0.001)]
    option, choice = chosen(rows, (1.0, 1.0, 0.4), 71)
    assert (option.epochs, option.share) == (71, 0.71)
    assert option.expected.difference == pytest.approx(-0.012 * 0.4941, rel=1e-3)
    assert option.expected.error == 0.002
    assert len(choice.options) == 3
    (line,) = [e for e in said(choice) if "length" in e]
    assert line == "trained for 71% of its length, between lengths that the study has"


def test_so_has_a_sparse_one_and_shortened_it_loses_what_it_lost_before():
    rows = [row(), row(difference=-0.012, error=0.002, epochs=125)]
    rows += [row(EDST, 0.01, 0.004, 450), row(EDST, -0.002, 0.003, 225)]
    option, choice = chosen(rows, (10.0, 10.0, 1.0, 1.0), 120)
    assert (option.epochs, option.share) == (120, 120 / 180)
    assert option.expected.difference == pytest.approx(0.01 - 0.012 * 0.585, rel=1e-3)
    assert "trained for 67% of its length, between lengths that the study has" in said(choice)
    option, choice = chosen(rows, (10.0, 10.0, 1.0, 1.0), 45)
    assert (option.epochs, option.share) == (45, 0.5)  # of the length nearest to the dense one
    assert option.expected == Expected(pytest.approx(-0.014), 0.004, tried=False)


def test_others_of_its_method_say_what_shortening_costs_a_training():
    rows = [row(), row(difference=-0.001, error=0.002, epochs=125)]
    rows += [row(EDST, 0.01, 0.004, 450), row(EDST, -0.01, 0.003, 225)]
    rows += [row({**EDST, "taps": "row"}, 0.011, 0.002, 450), row(RIGL, -0.01, 0.003)]
    seconds = (10.0, 10.0, 9.0, 9.0, 1.0, 9.0)
    option, choice = chosen(rows, seconds, 90)
    assert option.priced.candidate.row == rows[4]
    assert option.expected.difference == pytest.approx(0.011 - 0.02)
    assert "taken to cost what shorter edst trainings lost" in said(choice)[-1]
    (rigl,) = [o for o in choice.options if o.priced.candidate.row == rows[5]]
    assert rigl.expected.like == "dense networks"


def said(choice, on_gpu=False, timed=128, **info):
    from sparse_engine.data.catalog import TABLE

    return [*extrapolations(choice, DENSE, TABLE["digits"], on_gpu, timed)]


def test_what_does_not_fit_is_shortened_and_loses_what_dense_networks_lose():
    rows = [row(), row(difference=-0.012, error=0.003, epochs=125), row(EDST, 0.01, 0.004, 450)]
    option, choice = chosen(rows, (10.0, 10.0, 1.0), 90)
    assert choice.all_shortened
    assert option.priced.candidate.row == rows[2]
    assert (option.epochs, option.share) == (90, 0.5)
    assert option.expected.difference == pytest.approx(-0.002)
    assert option.expected.error == pytest.approx(0.005)
    assert "no training fits whole" in reason(choice)
    assert any("taken to cost what shorter dense networks lost" in e for e in said(choice))


def test_below_what_was_tried_there_is_an_order_and_no_figure():
    rows = [row(), row(difference=-0.012, error=0.002, epochs=125), row(EDST, 0.01, 0.004, 450)]
    rows.append(row(epochs=450, network="wrn10-1", difference=-0.08, error=0.002))
    option, choice = chosen(rows, (10.0, 10.0, 1.0, 0.7), 40)
    # A narrow network is shortened less, and was worse by far.
    assert option.priced.candidate.row == rows[2]
    assert not option.expected.tried
    assert "to lengths that were not tried, it seems to lose least" in reason(choice)
    assert expectation(choice, rows).startswith("not known")
    assert as_json(choice, [], 40)["choice"]["difference"] is None
    assert "trained for 22% of its length, shorter than anything that was tried" in said(choice)


def test_without_shorter_dense_networks_nothing_is_expected():
    option, choice = chosen([row(), row(RIGL, -0.01, 0.003)], (10.0, 1.0), 30)
    assert option.priced.candidate.row.settings == RIGL
    assert option.expected is None
    assert "no row says what shortening costs" in reason(choice)
    assert "trained for 30% of its length, shorter than anything that was tried" in said(choice)


def test_lengths_that_would_be_shortened_to_one_are_one():
    rows = some_rows()
    choice = choose(priced(rows, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0), 10)
    kinds = [option.priced.candidate.row for option in choice.options]
    assert [r for r in kinds if r.is_dense] == [rows[0]]
    assert len(kinds) == 5


def test_not_one_epoch():
    with pytest.raises(InputError, match=r"into 0.3 seconds: one epoch of the cheapest, rigl, 0.9"):
        choose(priced([row(), row(RIGL)], 1.0, 0.4), 0.3)


def test_what_is_expected_of_another_length():
    rows = [row(), row(difference=-0.012, error=0.002, epochs=125)]
    assert at_length(rows, 1.0) == Expected(0.0, 0.002)
    assert at_length(rows, 0.5) == Expected(-0.012, 0.002)
    assert at_length(rows, 0.25) == Expected(pytest.approx(-0.024), 0.002, tried=False)
    assert not at_length(rows, 1.1).tried
    assert at_length(rows[1:], 0.7) is None


def test_each_difference_to_the_study_is_told():
    choice = choose(priced([row(n=2)], 1.0), 200)
    lines = "\n".join(said(choice, on_gpu=True, timed=32))
    for words in (
        "data set cifar10-16px-5000-5000 in the study, digits here",
        "images of 16x16 pixels in the study, 8x8 here",
        "5000 training images in the study, 1437 here",
        "a dense run of 250 epochs in the study, 100 here",
        "trained on a CPU in fp32 in the study, trained on a GPU in fp32 here",
        "is of 2 seeds",
        "steps were timed with up to 32 images, and those of 128 taken to lie",
    ):
        assert words in lines
    assert "model" not in lines
    own = row(dataset="digits", pixels=8, images=1437, dense_epochs=100, epochs=100)
    assert said(choose(priced([own], 1.0), 200)) == []
