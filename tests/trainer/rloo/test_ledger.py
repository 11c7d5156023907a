"""The ledger of prompts, through a broken run."""

from trainer.rloo.ledger import FILE_NAME, Ledger, read_ledger


def test_lines_after_the_checkpoint_are_dropped_and_done_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.train(1, [0, 1])
    ledger.skip(1, 2, "no reward")
    ledger.train(2, [3, 4])
    assert all(ledger.is_done(position) for position in range(5))
    resumed = Ledger(tmp_path, resume_step=1)
    assert [p for p in range(6) if resumed.is_done(p)] == [0, 1, 2]
    assert resumed.skipped == {2: "no reward"}
    resumed.train(2, [4, 5])
    assert read_ledger(tmp_path) == [
        {"step": 1, "trained": [0, 1]},
        {"step": 1, "skipped": {"2": "no reward"}},
        {"step": 2, "trained": [4, 5]},
    ]


def test_a_new_run_starts_an_empty_ledger_and_a_torn_line_is_left_out(tmp_path):
    Ledger(tmp_path).train(1, [0])
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"step": 2, "tra')
    assert len(read_ledger(tmp_path)) == 1
    Ledger(tmp_path)
    assert read_ledger(tmp_path) == []
