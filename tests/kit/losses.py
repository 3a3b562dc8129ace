"""A loss over pairs of rows."""

from raydistill.losses import (
    Loss,
)


class PairDistance(Loss):
    """Differences inside groups of two rows."""

    student_needs = teacher_needs = frozenset({"logits"})
    group_size = 2

    def count(self, batch):
        return batch.num_rows // 2

    def forward(self, student, teacher, batch):
        n = 2 * self.count(batch)
        a, b = (z["logits"][:n].view(-1, 2, z["logits"].shape[-1]) for z in (student, teacher))
        return ((a[:, 0] - a[:, 1]).norm(dim=-1) - (b[:, 0] - b[:, 1]).norm(dim=-1)).square()
