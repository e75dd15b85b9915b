"""Round robin by a clock that the test moves: every figure is exact."""

import gc
import itertools

import pytest
import torch

from attnbench.measuring.latency import MAX_CALLS, STEADY, cpu_sampler, round_robin

NEVER = -1.0
"""A width that no interval has."""

CPU = torch.device("cpu")
MS = 1_000_000


class Clock:
    """A clock that only steps move."""

    def __init__(self):
        self.now = 0
        self.log = []

    def __call__(self):
        return self.now

    def step(self, name, *durations_ms):
        """A step that takes the durations in turn, the last one for ever."""
        remaining = list(durations_ms)

        def run():
            self.log.append(name)
            self.now += int(MS * (remaining.pop(0) if len(remaining) > 1 else remaining[0]))

        return run


def run(clock, steps, **settings):
    settings = {"control": "control", "device": CPU, "seconds_per_step": 1e6, "clock": clock, **settings}
    return round_robin(steps, **settings)


def test_samples_are_milliseconds_of_one_call():
    clock = Clock()
    samples = run(clock, {"control": clock.step("control", 4), "a": clock.step("a", 10)}, min_samples=3, max_rounds=3)
    assert samples["a"].ms == (10.0, 10.0, 10.0)
    assert samples["a"].control_ms == (4.0, 4.0, 4.0)
    assert samples["control"].ms == (4.0, 4.0, 4.0, 4.0)


def test_cheap_steps_are_called_until_a_sample_lasts_two_milliseconds():
    clock = Clock()
    steps = {"control": clock.step("control", 5), "a": clock.step("a", 0.3), "b": clock.step("b", 0)}
    samples = run(clock, steps, min_samples=2, max_rounds=2)
    assert [samples[name].calls_per_sample for name in ("control", "a", "b")] == [1, 7, MAX_CALLS]
    assert samples["a"].ms == (0.3, 0.3)
    assert all(value > 0 for value in samples["b"].ms)


def test_first_calls_are_not_sampled():
    clock = Clock()
    steps = {"control": clock.step("control", 900, 500, 3), "a": clock.step("a", 700, 400, 6)}
    samples = run(clock, steps, min_samples=2, max_rounds=2)
    assert samples["control"].ms == (3.0, 3.0, 3.0)
    assert samples["a"].ms == (6.0, 6.0)


def test_order_is_rotated_from_round_to_round():
    clock = Clock()
    announced = []
    steps = {name: clock.step(name, 5) for name in ("control", "a", "b")}
    run(clock, steps, min_samples=3, max_rounds=3, on_sample=announced.append)
    warm_up = ["control", "a", "b"]
    assert announced == [*warm_up, "control", "a", "b", "control", "b", "a", "control", "a", "b", "control"]
    assert clock.log[6:] == announced[3:]


def test_control_is_due_when_two_of_its_samples_time_has_gone_by():
    clock = Clock()
    announced = []
    steps = {"control": clock.step("control", 5), **{name: clock.step(name, 4) for name in "abcd"}}
    steps["long"] = clock.step("long", 50)
    run(clock, steps, min_samples=1, max_rounds=1, on_sample=announced.append)
    assert announced[6:] == ["control", "a", "b", "c", "control", "d", "long", "control"]


def test_control_beside_a_sample_is_the_mean_of_its_neighbours():
    clock = Clock()
    steps = {"control": clock.step("control", 9, 9, 4, 6, 8), "a": clock.step("a", 20), "b": clock.step("b", 2)}
    samples = run(clock, steps, min_samples=1, max_rounds=1)
    assert samples["control"].ms == samples["control"].control_ms == (4.0, 6.0, 8.0)
    assert samples["a"].control_ms == (5.0,)
    assert samples["b"].control_ms == (7.0,)


def test_a_step_leaves_the_rounds_when_its_time_is_spent():
    clock = Clock()
    shaky = {"cheap": clock.step("cheap", *([10, 30] * 200)), "dear": clock.step("dear", *([100, 300] * 200))}
    samples = run(clock, {"control": clock.step("control", 10), **shaky}, seconds_per_step=2.0, target_width=NEVER)
    assert len(samples["cheap"].ms) == 100
    assert len(samples["dear"].ms) == 10


def test_the_control_alone_is_sampled_in_every_round():
    clock = Clock()
    samples = run(clock, {"control": clock.step("control", 4)}, min_samples=3)
    assert samples["control"].ms == (4.0, 4.0, 4.0)


def test_steps_are_announced_before_they_run():
    clock = Clock()
    announced = []

    def failing():
        raise RuntimeError(announced[-1])

    with pytest.raises(RuntimeError, match=r"^bad$"):
        run(clock, {"control": clock.step("control", 1), "bad": failing}, on_sample=announced.append)


def test_steady_ratios_end_after_half_of_the_rounds():
    clock = Clock()
    samples = run(clock, {"control": clock.step("control", 4), "a": clock.step("a", 10)}, max_rounds=40)
    assert len(samples["a"].ms) == 20 + STEADY - 1


def test_a_width_that_is_narrow_once_is_luck():
    clock = Clock()
    # two of twelve slices are apart from the others behind the twentieth sample, three and more from the next one on
    lucky = [20] * 3 + [10] * 17 + [20] * 20
    steps = {"control": clock.step("control", 4), "a": clock.step("a", *[10, 10, *lucky])}
    samples = run(clock, steps, max_rounds=40)
    assert len(samples["a"].ms) == 40


def test_samples_of_dear_and_cheap_steps_are_spread_over_all_rounds():
    clock = Clock()
    announced = []
    costs = {"cheap": 4, "dear": 50, "dearer": 100}
    steps = {"control": clock.step("control", 4), **{name: clock.step(name, ms) for name, ms in costs.items()}}
    samples = run(clock, steps, seconds_per_step=0.4, min_samples=4, target_width=NEVER, on_sample=announced.append)
    assert [len(samples[name].ms) for name in costs] == [40, 8, 4]
    turns = "".join({"cheap": "|", "dear": "d", "dearer": "D"}.get(name, "") for name in announced[4:]).split("|")
    for letter, gap in (("d", 5), ("D", 10)):
        rounds = [index for index, turn in enumerate(turns) if letter in turn]
        # the order within a round rotates
        assert all(abs(later - earlier - gap) <= 1 for earlier, later in itertools.pairwise(rounds))


def test_drift_of_the_machine_does_not_widen_the_ratio():
    clock = Clock()
    control, beside = [4, 4, 4, *range(6, 40, 2)], [10, 10, *range(10, 80, 4)]
    steps = {"control": clock.step("control", *control), "a": clock.step("a", *beside)}
    samples = run(clock, steps, max_rounds=12)
    assert len(samples["a"].ms) == 6 + STEADY - 1
    assert samples["a"].ms == tuple(2 * value for value in samples["a"].control_ms)


def test_a_noisy_step_is_sampled_on_and_a_steady_one_is_not():
    clock = Clock()
    noisy = clock.step("noisy", *([5] * 7 + [15] * 7) * 20)
    steps = {"control": clock.step("control", 4), "a": clock.step("a", 10), "noisy": noisy}
    samples = run(clock, steps, max_rounds=30)
    assert len(samples["noisy"].ms) == 30
    assert len(samples["a"].ms) == 15 + STEADY - 1


def test_budget_ends_sampling():
    clock = Clock()
    steps = {"control": clock.step("control", 100), "a": clock.step("a", *([100, 300] * 100))}
    samples = run(clock, steps, seconds_per_step=4.0, min_samples=2)
    assert len(samples["a"].ms) == 20


def test_steps_beyond_the_budget_still_get_the_least_rounds():
    clock = Clock()
    samples = run(clock, {"control": clock.step("control", 5), "a": clock.step("a", 60_000)}, seconds_per_step=1.0)
    assert len(samples["a"].ms) == 6


@pytest.mark.parametrize("fails", [False, True])
def test_collector_is_off_while_sampling_and_restored(fails):
    clock = Clock()
    seen = []

    def step():
        seen.append(gc.isenabled())
        clock.now += MS
        if fails:
            raise MemoryError

    if fails:
        with pytest.raises(MemoryError):
            run(clock, {"control": step})
    else:
        run(clock, {"control": step})
    assert set(seen) == {False}
    assert gc.isenabled()


def test_settings_that_do_not_fit():
    clock = Clock()
    with pytest.raises(ValueError, match=r"expected the control among the steps \['a'\], got 'control'"):
        run(clock, {"a": clock.step("a", 1)})
    with pytest.raises(ValueError, match="expected 1 <= min_samples <= max_rounds, got 6 and 4"):
        run(clock, {"control": clock.step("control", 1)}, max_rounds=4)


def test_a_sample_is_never_zero():
    assert cpu_sampler(lambda: 0)(lambda: None, 4) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_time_work_on_the_device():
    device = torch.device("cuda")
    x = torch.zeros(1 << 20, device=device)
    small, large = x[: 1 << 10], x.repeat(64)
    steps = {"control": lambda: small + 1, "large": lambda: (large + 1).sqrt().exp()}
    samples = round_robin(steps, control="control", device=device, seconds_per_step=1.0)
    assert all(value > 0 for sample in samples.values() for value in sample.ms)
