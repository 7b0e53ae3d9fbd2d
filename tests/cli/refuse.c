/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded into the program (LD_PRELOAD): the MOBA_TEST_REFUSE-th request for memory or a thread is refused. With
 * MOBA_TEST_COUNT, the number of requests is written to the file of that name at the end.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* glibc's own names of its allocator; what is found by dlsym() would need memory first. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static atomic_long n_requests;

static int refused(void) {
    static atomic_long refuse_at = -1;
    long at = atomic_load(&refuse_at);
    if (at < 0) {
        const char *text = getenv("MOBA_TEST_REFUSE");
        at = text != NULL ? strtol(text, NULL, 10) : 0;
        atomic_store(&refuse_at, at);
    }
    if (atomic_fetch_add(&n_requests, 1) + 1 != at) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return refused() ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return refused() ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return refused() ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t alignment, size_t size) { return refused() ? NULL : __libc_memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size) {
    void *data = refused() ? NULL : __libc_memalign(alignment, size);
    if (data == NULL) return ENOMEM;
    *out = data;
    return 0;
}

__attribute__((destructor)) static void report(void) {
    const long n = atomic_load(&n_requests);
    const char *path = getenv("MOBA_TEST_COUNT");
    FILE *file = path != NULL ? fopen(path, "w") : NULL;
    if (file == NULL) return;
    fprintf(file, "%ld", n);
    fclose(file);
}
