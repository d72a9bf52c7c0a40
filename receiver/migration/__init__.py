"""From metric-reader, which this receiver replaces: its configuration, and what becomes of it."""
