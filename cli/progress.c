/* SPDX-License-Identifier: Apache-2.0
 *
 * The progress line: one thread wakes five times a second and redraws it while work is going on.
 */
#include "cli/progress.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_NS 200000000 /* fast enough to look alive, slow enough to cost nothing */
#define QUIET_SECONDS 1.0   /* shorter work shows nothing */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static pthread_t thread;
static bool running, stopping, drawn; /* guarded by lock */
static char step[160];
static double begin_seconds;
static atomic_uint_fast64_t step_done, step_total;

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void erase(void) {
    if (drawn) fputs("\r\033[K", stderr);
    drawn = false;
}

static void draw(void) {
    double elapsed = now_seconds() - begin_seconds;
    if (elapsed < QUIET_SECONDS) return;
    uint64_t done = atomic_load(&step_done), total = atomic_load(&step_total);
    if (total > 0) {
        fprintf(stderr, "\r\033[K%s: %.0f %% (%.0f s)", step, 100.0 * (double)done / (double)total, elapsed);
    } else {
        fprintf(stderr, "\r\033[K%s (%.0f s)", step, elapsed);
    }
    drawn = true;
}

static void *display(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    while (!stopping) {
        struct timespec wake;
        clock_gettime(CLOCK_MONOTONIC, &wake);
        wake.tv_nsec += REDRAW_NS;
        if (wake.tv_nsec >= 1000000000) {
            wake.tv_nsec -= 1000000000;
            wake.tv_sec++;
        }
        pthread_cond_timedwait(&changed, &lock, &wake);
        if (!stopping) draw();
    }
    erase();
    pthread_mutex_unlock(&lock);
    return NULL;
}

void mobai_progress(const char *format, ...) {
    if (!isatty(STDERR_FILENO)) return;
    pthread_mutex_lock(&lock);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(step, sizeof step, format, arguments);
    va_end(arguments);
    atomic_store(&step_done, 0);
    atomic_store(&step_total, 0);
    if (!running) {
        begin_seconds = now_seconds();
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_cond_init(&changed, &monotonic);
        pthread_condattr_destroy(&monotonic);
        stopping = false;
        running = pthread_create(&thread, NULL, display, NULL) == 0;
        if (!running) pthread_cond_destroy(&changed);
    }
    pthread_mutex_unlock(&lock);
}

void mobai_progress_at(uint64_t done, uint64_t total) {
    atomic_store_explicit(&step_done, done, memory_order_relaxed);
    atomic_store_explicit(&step_total, total, memory_order_relaxed);
}

void mobai_progress_clear(void) {
    pthread_mutex_lock(&lock);
    erase();
    fflush(stderr);
    pthread_mutex_unlock(&lock);
}

void mobai_progress_end(void) {
    pthread_mutex_lock(&lock);
    bool was_running = running;
    stopping = true;
    running = false;
    if (was_running) pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    if (!was_running) return;
    pthread_join(thread, NULL);
    pthread_cond_destroy(&changed);
}
