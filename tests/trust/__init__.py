"""What the program promises about its own failures, tried out and counted.

Each module is one promise with a CHECK: what must hold, and a function that tries to
break it. They run the real program on recorded machines that react as the kernel does
(tests/fakehost); real kernels are the lab's (tests/lab).
"""
