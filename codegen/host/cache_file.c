/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads and writes the files of MOBA_CACHE_DIR: the data, then 8 bytes of its hash in the machine's byte order.
 */
#define _POSIX_C_SOURCE 200809L
#include "codegen/host/cache_file.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t mobai_hash(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ at[i]) * UINT64_C(0x100000001b3);
    return h;
}

uint64_t mobai_hash_string(uint64_t h, const char *s) { return mobai_hash(h, s, strlen(s) + 1); }

void *mobai_cache_read(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    unsigned char *data = NULL;
    uint64_t expected = 0;
    long size = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    if (size > (long)sizeof expected && fseek(f, 0, SEEK_SET) == 0 && (data = malloc((size_t)size)) != NULL) {
        *bytes = (size_t)size - sizeof expected;
        bool whole = fread(data, 1, (size_t)size, f) == (size_t)size;
        if (whole) memcpy(&expected, data + *bytes, sizeof expected);
        if (!whole || mobai_hash(MOBAI_HASH_BEGIN, data, *bytes) != expected) {
            free(data);
            data = NULL;
        }
    }
    fclose(f);
    return data;
}

void mobai_cache_write(const char *path, const void *data, size_t bytes) {
    char temporary[1200];
    const uint64_t end = mobai_hash(MOBAI_HASH_BEGIN, data, bytes);
    int n = snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof temporary) return;
    FILE *f = fopen(temporary, "wb");
    if (!f) return;
    bool ok = fwrite(data, 1, bytes, f) == bytes && fwrite(&end, 1, sizeof end, f) == sizeof end;
    if (fclose(f) != 0 || !ok || rename(temporary, path) != 0) remove(temporary);
}
