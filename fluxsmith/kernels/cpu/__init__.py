"""C++ and oneDNN for x86 processors."""
