/* SPDX-License-Identifier: Apache-2.0
 *
 * A file in memory that holds the fuzzer's bytes, so that the file readers themselves are exercised.
 */
#ifndef MOBAI_MEMORY_FILE_H
#define MOBAI_MEMORY_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/** Writes the bytes to the file and returns its path, which stays valid; ends the program when that fails. */
static inline const char *memory_file(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) {
        perror("memory_file");
        exit(1);
    }
    return path;
}

#endif
