"""A linear with what follows it, by cuBLASLt or a kernel of our own: in C++ alone, where both are measured."""
