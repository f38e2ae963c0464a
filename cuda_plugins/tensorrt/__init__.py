"""What makes TensorRT run the swinopt ops: a plugin library in C++, and plugins in Python that need pip alone."""
