"""A residual addition and the LayerNorm behind it, in one pass over memory."""
