"""The Triton side: tensors to records and back, threads that answer, and the tables that config.pbtxt is made from."""
