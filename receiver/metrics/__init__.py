"""What `/metrics` shows: what the processes count, and what the journal holds when it is asked."""

# prometheus_client's own name of the variable; a plugin that counts with it is seen, too.
SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
