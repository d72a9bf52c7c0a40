"""The tests, by speed: unit, journal, process, external, soak."""
