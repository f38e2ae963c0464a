"""Shifted-window attention that reads the un-partitioned feature map and writes it back in place of its tokens."""
