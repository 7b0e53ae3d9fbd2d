/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory checks of the emulator: the functions that clang's -fsanitize=kernel-address calls before every load and store
 * of the kernels' texts, over the emulator's own lists of allocations and shared arrays.
 */
#include "tests/hip/emulator_memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/hip/emulator.h"

typedef struct range {
    uintptr_t begin, end;
    const char *name; /* shared arrays */
} range;

enum { MAX_RANGES = 4096 };

/* Both sorted by address. */
static range allocations[MAX_RANGES], arrays[MAX_RANGES];
static int n_allocations, n_arrays;

static int first_after(const range *list, int n, uintptr_t address) {
    int low = 0, high = n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (list[middle].begin <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void insert(range *list, int *n, range r) {
    if (*n == MAX_RANGES) abort();
    int at = first_after(list, *n, r.begin);
    memmove(list + at + 1, list + at, (size_t)(*n - at) * sizeof *list);
    list[at] = r;
    ++*n;
}

void emu_memory_add(const void *begin, size_t bytes) {
    range r = {(uintptr_t)begin, (uintptr_t)begin + bytes, NULL};
    insert(allocations, &n_allocations, r);
}

bool emu_memory_remove(const void *begin) {
    int at = first_after(allocations, n_allocations, (uintptr_t)begin) - 1;
    if (at < 0 || allocations[at].begin != (uintptr_t)begin) return false;
    n_allocations--;
    memmove(allocations + at, allocations + at + 1, (size_t)(n_allocations - at) * sizeof *allocations);
    return true;
}

/* ------------------------------------------------------------------------------------------ shared memory -- */

/** Who touched a word of shared memory last, and in which interval. */
typedef struct word {
    uint32_t written_in, read_in;
    uint16_t writer, reader; /* reader: MANY when several lanes read it */
} word;

enum { MANY = 0xffff };

static word *words;
static uintptr_t words_begin, words_end;
static uint32_t interval;

/** The words cover everything from the first shared array to the last. */
static void allocate_words(void) {
    words_begin = arrays[0].begin & ~(uintptr_t)3;
    words_end = arrays[n_arrays - 1].end;
    words = calloc((words_end - words_begin) / 4 + 1, sizeof *words);
    if (!words) abort();
}

void emu_next_interval(void) {
    if (!words && n_arrays > 0) allocate_words();
    interval++;
}

static void check_race(uintptr_t address, size_t bytes, bool store) {
    const uint16_t lane = (uint16_t)emu_lane();
    for (uintptr_t at = address & ~(uintptr_t)3; at < address + bytes; at += 4) {
        word *w = &words[(at - words_begin) / 4];
        const bool written = w->written_in == interval && w->writer != lane;
        const bool read = w->read_in == interval && w->reader != lane;
        if (written || (store && read)) {
            char lanes[32];
            snprintf(lanes, sizeof lanes, !written && w->reader == MANY ? "several lanes" : "lane %d",
                     written ? (int)w->writer : (int)w->reader);
            emu_fault("race on shared memory: a %s of what %s %s since the last barrier", store ? "store" : "load",
                      lanes, written ? "stored" : "loaded");
            return;
        }
        if (store) {
            w->written_in = interval;
            w->writer = lane;
        } else {
            w->reader = w->read_in == interval && w->reader != lane ? (uint16_t)MANY : lane;
            w->read_in = interval;
        }
    }
}

/* ------------------------------------------------------------------------------------------------ checks -- */

static bool is_inside(const range *r, uintptr_t address, size_t bytes) {
    return address >= r->begin && bytes <= r->end - r->begin && address - r->begin <= r->end - r->begin - bytes;
}

static void report(uintptr_t address, size_t bytes, bool store, const range *list, int n, const char *kind) {
    int at = first_after(list, n, address) - 1;
    if (at < 0)
        emu_fault("%s of %zu bytes at %#zx, outside every %s", store ? "store" : "load", bytes, (size_t)address, kind);
    else
        emu_fault("%s of %zu bytes at byte %zu of %s %s%sof %zu bytes", store ? "store" : "load", bytes,
                  (size_t)(address - list[at].begin), kind, list[at].name ? list[at].name : "",
                  list[at].name ? " " : "", (size_t)(list[at].end - list[at].begin));
}

static void check(uintptr_t address, size_t bytes, bool store) {
    static const range *last = allocations;
    if (last < allocations + n_allocations && is_inside(last, address, bytes)) return;
    if (address - (uintptr_t)emu_stack() < emu_stack_bytes()) return;
    if (words && address >= words_begin && address < words_end) {
        static const range *last_array = arrays;
        if (!is_inside(last_array, address, bytes)) {
            int at = first_after(arrays, n_arrays, address) - 1;
            if (at < 0 || !is_inside(&arrays[at], address, bytes)) {
                report(address, bytes, store, arrays, n_arrays, "the shared array");
                return;
            }
            last_array = &arrays[at];
        }
        check_race(address, bytes, store);
        return;
    }
    int at = first_after(allocations, n_allocations, address) - 1;
    if (at < 0 || !is_inside(&allocations[at], address, bytes)) {
        report(address, bytes, store, allocations, n_allocations, "an allocation");
        return;
    }
    last = &allocations[at];
}

/* What the compiler calls. `address` of a vector may be of any size. */
#define CHECKS(bytes)                                                                                                  \
    void __asan_load##bytes##_noabort(uintptr_t address);                                                              \
    void __asan_load##bytes##_noabort(uintptr_t address) { check(address, bytes, false); }                             \
    void __asan_store##bytes##_noabort(uintptr_t address);                                                             \
    void __asan_store##bytes##_noabort(uintptr_t address) { check(address, bytes, true); }
CHECKS(1)
CHECKS(2)
CHECKS(4)
CHECKS(8)
CHECKS(16)

void __asan_loadN_noabort(uintptr_t address, size_t bytes);
void __asan_loadN_noabort(uintptr_t address, size_t bytes) { check(address, bytes, false); }
void __asan_storeN_noabort(uintptr_t address, size_t bytes);
void __asan_storeN_noabort(uintptr_t address, size_t bytes) { check(address, bytes, true); }
void __asan_handle_no_return(void);
void __asan_handle_no_return(void) {}
/* Newer compilers call these round constructors. */
void __asan_before_dynamic_init(const char *module);
void __asan_before_dynamic_init(const char *module) { (void)module; }
void __asan_after_dynamic_init(void);
void __asan_after_dynamic_init(void) {}

/** As the compiler lays out its description of an instrumented global; these are the kernels' shared arrays. */
typedef struct asan_global {
    uintptr_t begin;
    size_t bytes, bytes_with_redzone;
    const char *name, *module;
    size_t has_dynamic_init;
    void *location;
    size_t odr_indicator;
} asan_global;

void __asan_register_globals(asan_global *globals, size_t n);
void __asan_register_globals(asan_global *globals, size_t n) {
    for (size_t i = 0; i < n; i++) {
        range r = {globals[i].begin, globals[i].begin + globals[i].bytes, globals[i].name};
        insert(arrays, &n_arrays, r);
    }
}
void __asan_unregister_globals(asan_global *globals, size_t n);
void __asan_unregister_globals(asan_global *globals, size_t n) {
    (void)globals;
    (void)n;
}
