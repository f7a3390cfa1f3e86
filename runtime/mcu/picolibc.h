/* Configures picolibc's sources where they are compiled without its own build system. */
#define __PICOLIBC__ 1
#define NEWLIB_GLOBAL_ERRNO
