"""The four timestamps of a try (X-Road's op-monitoring), in monotonic seconds; 0: not yet."""

import msgspec


class Stopwatch(msgspec.Struct):
    asked: float
    sent: float = 0.0
    """From here on a byte may have left: what is not a clear answer is unknown."""
    first_byte: float = 0.0
    parsed: float = 0.0

    def spans(self) -> dict[str, float]:
        """Seconds of the phases that were reached: `before` (waiting, building, connecting), `partner`, `reading`."""
        marks = (self.asked, self.sent, self.first_byte, self.parsed)
        names = ("before", "partner", "reading")
        return {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False) if begin and end}
