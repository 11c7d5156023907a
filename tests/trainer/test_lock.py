import threading
from pathlib import Path

from trainer.lock import locked


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "not there yet" / "runs.lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert (first, second) == (True, False)
    with locked(path, wait=False) as third:
        assert third


def test_waiting_takes_until_the_other_lets_go(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    held, released, order = threading.Event(), threading.Event(), []

    def wait() -> None:
        held.wait()
        with locked(path, wait=True) as ours:
            order.append(("waiter", ours, released.is_set()))

    thread = threading.Thread(target=wait)
    thread.start()
    with locked(path, wait=False):
        held.set()
        thread.join(timeout=0.2)
        released.set()
    thread.join(timeout=60)
    assert order == [("waiter", True, True)]
