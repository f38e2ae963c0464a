"""A linear with what follows it, by cuBLASLt: in C++ alone, since NVRTC compiles kernels and these are a library's."""
