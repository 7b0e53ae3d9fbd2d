/* SPDX-License-Identifier: Apache-2.0
 *
 * Files of MOBA_CACHE_DIR: what a driver compiled, kept for the next process. Drivers trust such data (PoCL ends the
 * process on a damaged program), so each file ends in a hash of the rest and is read only when that is right.
 */
#ifndef MOBAI_CACHE_FILE_H
#define MOBAI_CACHE_FILE_H

#include <stddef.h>
#include <stdint.h>

#define MOBAI_HASH_BEGIN UINT64_C(0xcbf29ce484222325)

/** FNV-1a, 64 bits, going on from `h`. */
uint64_t mobai_hash(uint64_t h, const void *data, size_t bytes);
/** The same of a string with its end, so that "ab", "c" and "a", "bc" differ. */
uint64_t mobai_hash_string(uint64_t h, const char *s);

/** What was written, to be freed; NULL: there is none, it is damaged, or there is no memory. */
void *mobai_cache_read(const char *path, size_t *bytes);
/** Best effort: a cache that cannot be written costs only time. The name appears with its whole contents. */
void mobai_cache_write(const char *path, const void *data, size_t bytes);

#endif
