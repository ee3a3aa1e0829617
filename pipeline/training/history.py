"""What a run leaves behind: a record an epoch, and weights."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.models.states import StateDict


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """A line of history.csv.

    Args:
        epoch: counted from 1.
        view: which view was shown.
        loss: mean over the epoch's steps.
        learning_rate: of the last step.
        validation_top1, validation_nll: None without a validation split.
        seconds: of the epoch's training, without evaluation.
        data_seconds: of these, in which the loop waited for a batch.
        evaluation_seconds: of validation, after it.
        images_per_second: trained.
        skipped_steps: of half precision, whose gradients overflowed: nothing was learnt in them.

    """

    epoch: int
    view: int
    loss: float
    learning_rate: float
    validation_top1: float | None
    validation_nll: float | None
    seconds: float
    data_seconds: float
    evaluation_seconds: float
    images_per_second: float
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a run leaves behind.

    Args:
        history: a record an epoch.
        last, best: weights (of the average, where there is one) after the last epoch, and after the
            epoch with the highest validation top-1; the last one's where nothing was validated.
        best_epoch: counted from 1.

    """

    history: list[EpochRecord]
    last: StateDict
    best: StateDict
    best_epoch: int

    @property
    def skipped_steps(self) -> int:
        """Steps of half precision in which nothing was learnt."""
        return sum(record.skipped_steps for record in self.history)

    @property
    def speed(self) -> dict[str, float]:
        """Images a second (median over epochs), seconds by what took them, and the share of waiting."""
        rates = sorted(record.images_per_second for record in self.history)
        seconds, waited = self._total("seconds"), self._total("data_seconds")
        return {
            "images_per_second": rates[len(rates) // 2],
            "seconds": seconds,
            "data_seconds": waited,
            "evaluation_seconds": self._total("evaluation_seconds"),
            "stall_fraction": waited / seconds,
        }

    def _total(self, what: str) -> float:
        return float(sum(getattr(record, what) for record in self.history))


def describe(record: EpochRecord, epochs: int) -> str:
    """Return a record as a line of progress."""
    figures = [f"loss {record.loss:.4f}"]
    if record.validation_top1 is not None:
        figures.append(f"validation top-1 {record.validation_top1:.4f} nll {record.validation_nll:.4f}")
    if record.skipped_steps:
        figures.append(f"steps skipped by fp16's loss scale: {record.skipped_steps:,}")
    waited = record.data_seconds / record.seconds
    figures.append(f"{record.images_per_second:,.0f} images/s, {waited:.1%} of the time waiting for data")
    return f"epoch {record.epoch}/{epochs}: {', '.join(figures)}"
