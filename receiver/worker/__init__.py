"""The worker process: claims due runs, attempts them in threads, and records how they ended."""
