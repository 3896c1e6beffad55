"""A soak can be repeated."""

from tests.soak.plan import CLIENTS, OPERATIONS_EACH, draw

RESTARTS = {"kill", "terminate"}


def test_the_same_seed_draws_the_same_plan() -> None:
    assert draw(7, 100) == draw(7, 100)
    assert draw(7, 100).digest() == draw(7, 100).digest()
    assert draw(7, 100).digest() != draw(8, 100).digest()


def test_a_plan_stays_the_same_from_one_process_to_the_next() -> None:
    """Nothing of it hangs on the order of sets or on the moment; change it with the plan."""
    assert draw(1, 180).digest().startswith("c56b97d1fcd69123")


def test_one_process_lives_through_the_last_third() -> None:
    plan = draw(3, 240)
    assert len(plan.rounds) == 30
    assert plan.steady_from == 20
    for n, each in enumerate(plan.rounds):
        restarts = [event for event in each.events if event.what in RESTARTS]
        assert bool(restarts) == (n < plan.steady_from)


def test_operations_ask_for_what_is_there() -> None:
    known = 0
    for each in draw(5, 200).rounds:
        known += len(each.wares)
        operations = [operation for client in each.clients for operation in client]
        assert len(operations) == CLIENTS * OPERATIONS_EACH
        assert all(0 <= operation.ware < known for operation in operations)
        assert any(operation.ware >= known - len(each.wares) for operation in operations)
