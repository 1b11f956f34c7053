"""The counts of cases at the end of pytest's output: a file that shrinks must not look like a success."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in getattr(report, "user_properties", ())
        if name == "wycheproof"
    ]
    if lines:
        terminalreporter.section("Wycheproof")
        for line in lines:
            terminalreporter.write_line(str(line))
