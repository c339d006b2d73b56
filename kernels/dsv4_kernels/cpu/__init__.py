"""C++ twins of the operators, one C-ABI library, called through ctypes (about one microsecond per call)."""
