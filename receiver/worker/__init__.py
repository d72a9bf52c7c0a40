"""The worker: claims due runs, has them performed by other processes, and records their ends."""
