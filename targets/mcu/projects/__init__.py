"""Complete projects that build a program: CMake, QEMU, Arduino, Zephyr."""
