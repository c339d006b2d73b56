"""The operators on NVIDIA GPUs, in the Triton language (the server called Triton is another thing).

    arch.py       what each architecture can multiply natively, and what stands in where it cannot
    launch.py     a launch as data: run on a GPU or in the interpreter, or recorded for offline compilation
    weights.py    quantised weights in the form the kernels read      device/    the kernels
    <op>.py       checks shapes, chooses blocks, launches              table.py   the operators of `OpTable`, and more
    pairs.py      every (kernel, configuration) of Pro and Flash       lower.py   compiles them offline and looks inside

Rule: no operator looks at the data of a tensor while it decides (it runs on meta tensors as well), so a step can be
      captured as a CUDA graph. Row numbers and expert ids are trusted: a GPU cannot raise ShapeError for them.
"""
