"""What tests share: receivers, databases, fakes, and ways to wait."""
