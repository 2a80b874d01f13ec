/* Makes reads, writes, flushes or memory maps of files fail as on a broken disk: a library for LD_PRELOAD.

   EIO_READ, EIO_WRITE, EIO_FSYNC and EIO_MMAP are patterns of paths. The first three fail with EIO; the pages of a map
   end the process by SIGBUS, as those that the disk cannot read. EIO_TRACE is a file that gets a line for each failure. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(int fd, const char *variable) {
    const char *pattern = getenv(variable);
    if (!pattern || fd < 0) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (fnmatch(pattern, path, 0) != 0) return 0;
    const char *trace = getenv("EIO_TRACE");
    FILE *file = trace ? fopen(trace, "a") : NULL;
    if (file) {
        fprintf(file, "%s %s\n", variable, path);
        fclose(file);
    }
    errno = EIO;
    return 1;
}

/* Defines a function that fails for some files, and calls the system's for all others. */
#define WRAP(type, name, parameters, arguments, failure)              \
    type name parameters {                                            \
        static type(*real) parameters;                                \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return (failure) ? -1 : real arguments;                       \
    }

#define READ fails(fd, "EIO_READ")
#define WRITE fails(fd, "EIO_WRITE")
#define COPY (fails(from, "EIO_READ") || fails(to, "EIO_WRITE"))

WRAP(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), READ)
WRAP(ssize_t, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), READ)
WRAP(ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at), READ)
WRAP(ssize_t, readv, (int fd, const struct iovec *parts, int count), (fd, parts, count), READ)
WRAP(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), WRITE)
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), WRITE)
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), WRITE)
WRAP(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), WRITE)
WRAP(int, fsync, (int fd), (fd), fails(fd, "EIO_FSYNC"))
WRAP(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size), COPY)
WRAP(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size), COPY)
WRAP(ssize_t, copy_file_range,
     (int from, off64_t *at, int to, off64_t *into, size_t size, unsigned flags),
     (from, at, to, into, size, flags), COPY)

/* An empty file: a page of its map is beyond its end. */
static int empty_file(void) {
    static int fd = -1;
    if (fd < 0) fd = memfd_create("empty", 0);
    return fd;
}

#define WRAP_MAP(name, offset_type)                                                                   \
    void *name(void *address, size_t size, int protection, int flags, int fd, offset_type at) {       \
        static void *(*real)(void *, size_t, int, int, int, offset_type);                             \
        if (!real) real = (void *(*)(void *, size_t, int, int, int, offset_type))dlsym(RTLD_NEXT, #name); \
        if (!(flags & MAP_ANONYMOUS) && fails(fd, "EIO_MMAP"))                                        \
            return real(address, size, protection, flags, empty_file(), 0);                           \
        return real(address, size, protection, flags, fd, at);                                        \
    }

WRAP_MAP(mmap, off_t)
WRAP_MAP(mmap64, off64_t)
