"""LayerNorm, and the residual addition behind it, in one pass over memory."""
