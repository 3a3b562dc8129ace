"""When a checkpoint is due because a node is about to be taken away."""

from __future__ import annotations

from raydistill.pipeline.notice import LAST_SECONDS, Notice


def test_a_checkpoint_is_due_at_once_after_notice_and_once_more_before_the_end():
    told: list[float | None] = [None]
    now = [100.0]
    notice = Notice(lambda: told[0], lambda: now[0])
    assert not notice.is_due()
    told[0] = 100.0 + 2 * LAST_SECONDS
    assert [notice.is_due() for _ in range(3)] == [True, False, False]
    now[0] += LAST_SECONDS
    assert [notice.is_due() for _ in range(3)] == [True, False, False]
    told[0] = 100.0 + 1.5 * LAST_SECONDS  # a second node goes earlier
    assert [notice.is_due() for _ in range(2)] == [True, False]


def test_a_notice_without_a_deadline_asks_for_one_checkpoint():
    notice = Notice(lambda: 0.0)
    assert [notice.is_due() for _ in range(3)] == [True, False, False]
