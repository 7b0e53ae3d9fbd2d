/* SPDX-License-Identifier: Apache-2.0
 *
 * Files of MOBA_CACHE_DIR: what was written comes back whole or not at all.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codegen/host/cache_file.h"

static char dir[] = "/tmp/moba_cache_XXXXXX", path[64];
static const unsigned char program[] = "of a driver";

static void make_dir(void) {
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.bin", dir);
}

static void remove_dir(void) {
    remove(path);
    cr_expect_eq(rmdir(dir), 0, "a temporary file was left behind");
}

/** Overwrites the file. */
static void put(const unsigned char *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(data, 1, bytes, f), bytes);
    cr_assert_eq(fclose(f), 0);
}

static bool readable(void) {
    size_t bytes = 0;
    unsigned char *data = mobai_cache_read(path, &bytes);
    bool same = data && bytes == sizeof program && memcmp(data, program, bytes) == 0;
    cr_expect(!data || same, "something else was read");
    free(data);
    return same;
}

Test(cache_file, whole_or_not_at_all, .init = make_dir, .fini = remove_dir) {
    cr_expect(!readable(), "there is no file yet");
    mobai_cache_write(path, program, sizeof program);
    cr_assert(readable());
    unsigned char file[64];
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f);
    const size_t bytes = fread(file, 1, sizeof file, f);
    fclose(f);
    cr_assert_gt(bytes, sizeof program);
    cr_assert_lt(bytes, sizeof file);
    for (size_t cut = 0; cut < bytes; cut++) {
        put(file, cut);
        cr_expect(!readable(), "cut to %zu bytes", cut);
    }
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        file[bit / 8] ^= (unsigned char)(1u << bit % 8);
        put(file, bytes);
        cr_expect(!readable(), "bit %zu is flipped", bit);
        file[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    put(file, bytes + 1);
    cr_expect(!readable(), "one byte more");
    mobai_cache_write(path, program, sizeof program);
    cr_expect(readable(), "a damaged file is not replaced");
}

/* Neither a missing folder nor a file or a folder in the way is an error; nothing is left behind. */
Test(cache_file, folders_that_cannot_be_written, .init = make_dir, .fini = remove_dir) {
    char below[96];
    put(program, sizeof program);
    snprintf(below, sizeof below, "%s/a.bin", path);
    mobai_cache_write(below, program, sizeof program);
    cr_assert_eq(remove(path), 0);
    cr_assert_eq(mkdir(path, 0700), 0);
    mobai_cache_write(path, program, sizeof program);
    cr_expect(!readable());
    snprintf(below, sizeof below, "%s/none/a.bin", dir);
    mobai_cache_write(below, program, sizeof program);
}

Test(cache_file, keys_of_strings_have_ends) {
    cr_expect_neq(mobai_hash_string(mobai_hash_string(MOBAI_HASH_BEGIN, "ab"), "c"),
                  mobai_hash_string(mobai_hash_string(MOBAI_HASH_BEGIN, "a"), "bc"));
    cr_expect_eq(mobai_hash(MOBAI_HASH_BEGIN, "a", 1), UINT64_C(0xaf63dc4c8601ec8c)); /* the published value */
}
