"""The web process: accepts notifications, and answers once they are durable."""
