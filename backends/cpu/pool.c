/* SPDX-License-Identifier: Apache-2.0
 *
 * Thread pool of a CPU device. Loops wait in a list under one mutex; an idle thread joins the oldest. Items are handed
 * out by an atomic counter, so the order of results never depends on it: a task owns what it writes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include "backends/cpu/cpu.h"

#define MOBAI_CPU_MAX_THREADS 1024

/** A running loop; lives on its caller's stack. All but `next_item` is guarded by the pool's mutex. */
typedef struct cpu_job {
    mobai_cpu_task task;
    void *context;
    int64_t n;
    atomic_int_least64_t next_item;
    int32_t n_joined; /* participants so far: the next one's thread index */
    int32_t n_active; /* pool threads inside the loop */
    int listed;       /* still offered to idle threads */
    struct cpu_job *next;
} cpu_job;

struct mobai_cpu_pool {
    pthread_mutex_t mutex;
    pthread_cond_t work; /* a loop was listed, or the pool stops */
    pthread_cond_t idle; /* a pool thread left a loop */
    cpu_job *jobs;       /* oldest first */
    int stopping;
    int32_t n_threads;
    int32_t n_started;
    pthread_t threads[];
};

int32_t mobai_cpu_default_threads(void) {
    long count = 0;
#if defined(__linux__)
    /* Machines with more CPUs than a cpu_set_t holds answer EINVAL until the set is large enough. */
    for (int n_cpus = CPU_SETSIZE; n_cpus <= 64 * CPU_SETSIZE && count == 0; n_cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n_cpus);
        if (set == NULL) break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)n_cpus);
        if (sched_getaffinity(0, bytes, set) == 0) count = CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
    }
#endif
    if (count <= 0) count = sysconf(_SC_NPROCESSORS_ONLN);
    if (count <= 0) count = 1;
    return count < MOBAI_CPU_MAX_THREADS ? (int32_t)count : MOBAI_CPU_MAX_THREADS;
}

static void work_on(cpu_job *job, int32_t thread) {
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&job->next_item, 1, memory_order_relaxed);
        if (i >= job->n) return;
        job->task(job->context, i, thread);
    }
}

static void unlist(mobai_cpu_pool *pool, cpu_job *job) {
    if (!job->listed) return;
    cpu_job **link = &pool->jobs;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
    job->listed = 0;
}

static void *pool_thread(void *argument) {
    mobai_cpu_pool *pool = argument;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (pool->jobs == NULL && !pool->stopping)
            pthread_cond_wait(&pool->work, &pool->mutex);
        if (pool->stopping) break;
        cpu_job *job = pool->jobs;
        int32_t thread = job->n_joined++;
        job->n_active++;
        pthread_mutex_unlock(&pool->mutex);
        work_on(job, thread);
        pthread_mutex_lock(&pool->mutex);
        unlist(pool, job);
        if (--job->n_active == 0) pthread_cond_broadcast(&pool->idle);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

moba_status mobai_cpu_pool_create(int32_t n_threads, mobai_cpu_pool **out) {
    if (n_threads < 1 || n_threads > MOBAI_CPU_MAX_THREADS)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "n_threads is %d; it must be 1 to %d", (int)n_threads,
                          MOBAI_CPU_MAX_THREADS);
    mobai_cpu_pool *pool = calloc(1, sizeof *pool + (size_t)(n_threads - 1) * sizeof(pthread_t));
    if (pool == NULL) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a pool of %d threads", (int)n_threads);
    pool->n_threads = n_threads;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->idle, NULL);
    for (int32_t i = 0; i + 1 < n_threads; i++) {
        int error = pthread_create(&pool->threads[i], NULL, pool_thread, pool);
        if (error != 0) {
            mobai_cpu_pool_destroy(pool);
            return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "thread %d of n_threads %d could not be started: error %d",
                              (int)i + 2, (int)n_threads, error);
        }
        pool->n_started++;
    }
    *out = pool;
    return MOBA_OK;
}

void mobai_cpu_pool_destroy(mobai_cpu_pool *pool) {
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = 1;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (int32_t i = 0; i < pool->n_started; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

int32_t mobai_cpu_pool_threads(const mobai_cpu_pool *pool) { return pool->n_threads; }

void mobai_cpu_parallel_for(mobai_cpu_pool *pool, int64_t n, mobai_cpu_task task, void *context) {
    if (n <= 0) return;
    if (n == 1 || pool->n_threads == 1) {
        for (int64_t i = 0; i < n; i++)
            task(context, i, 0);
        return;
    }
    cpu_job job = {.task = task, .context = context, .n = n, .n_joined = 1, .listed = 1};
    atomic_init(&job.next_item, 0);
    pthread_mutex_lock(&pool->mutex);
    cpu_job **link = &pool->jobs;
    while (*link != NULL)
        link = &(*link)->next;
    *link = &job;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    work_on(&job, 0);
    pthread_mutex_lock(&pool->mutex);
    unlist(pool, &job);
    while (job.n_active > 0)
        pthread_cond_wait(&pool->idle, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}
