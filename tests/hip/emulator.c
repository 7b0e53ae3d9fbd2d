/* SPDX-License-Identifier: Apache-2.0
 *
 * Fibers, work-groups and barriers of the emulator.
 */
#include "tests/hip/emulator.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "tests/hip/emulator_memory.h"

enum { MAX_KERNELS = 512, MAX_LANES = 1024, STACK_BYTES = 128 * 1024 };

static const emu_kernel *kernels[MAX_KERNELS];
static int n_kernels;

void emu_register(const emu_kernel *kernel) {
    if (n_kernels == MAX_KERNELS) abort();
    kernels[n_kernels++] = kernel;
}

const emu_kernel *emu_find(const char *name) {
    for (int i = 0; i < n_kernels; i++)
        if (strcmp(kernels[i]->name, name) == 0) return kernels[i];
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ fibers -- */

typedef enum fiber_state { FIBER_READY, FIBER_AT_BARRIER, FIBER_AT_EXCHANGE, FIBER_DONE } fiber_state;

typedef struct fiber {
    bool started;
    fiber_state state;
    int line; /* of the barrier it waits at */
    int n_exchanges;
    ucontext_t context;
    jmp_buf resume;
} fiber;

static fiber fibers[MAX_LANES];
/* What the lanes brought to the exchange before last and to the last one. */
static char exchanged[2][MAX_LANES * EMU_EXCHANGE_BYTES];
static char *stacks; /* MAX_LANES * STACK_BYTES */
static jmp_buf scheduler;
static ucontext_t scheduler_context;

static struct {
    const emu_kernel *kernel;
    void **arguments;
    unsigned groups[3], group[3];
    int lane, wave;
    bool failed;
    char fault[512];
} run;

int emu_lane(void) { return run.lane; }
unsigned emu_group(int axis) { return run.group[axis]; }
unsigned emu_groups_x(void) { return run.groups[0]; }

const char *emu_stack(void) { return stacks + (size_t)run.lane * STACK_BYTES; }
size_t emu_stack_bytes(void) { return STACK_BYTES; }

static void leave(fiber_state state) {
    fiber *f = &fibers[run.lane];
    f->state = state;
    if (_setjmp(f->resume) == 0) _longjmp(scheduler, 1);
}

int emu_wave(void) { return run.wave; }
int emu_wave_lane(void) { return run.lane % run.wave; }

const void *emu_exchange(const void *mine, size_t bytes) {
    if (bytes > EMU_EXCHANGE_BYTES) abort();
    fiber *f = &fibers[run.lane];
    char *to = exchanged[f->n_exchanges++ % 2];
    const int first = run.lane / run.wave * run.wave;
    to += (size_t)first * EMU_EXCHANGE_BYTES;
    memcpy(to + (size_t)(run.lane - first) * bytes, mine, bytes);
    leave(FIBER_AT_EXCHANGE);
    return to;
}

void emu_barrier(int line) {
    fibers[run.lane].line = line;
    leave(FIBER_AT_BARRIER);
}

void emu_fault(const char *format, ...) {
    char what[400];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    run.failed = true;
    snprintf(run.fault, sizeof run.fault, "%s, work-group (%u, %u, %u), lane %d: %s", run.kernel->name, run.group[0],
             run.group[1], run.group[2], run.lane, what);
    leave(FIBER_DONE);
}

/** A fiber runs one lane after the other, one for each work-group. */
static void fiber_main(void) {
    for (;;) {
        run.kernel->call(run.arguments);
        leave(FIBER_DONE);
    }
}

/** Runs lane `lane` up to its next barrier or its end. */
static void resume(int lane) {
    fiber *f = &fibers[lane];
    run.lane = lane;
    if (_setjmp(scheduler) != 0) return;
    if (f->started) _longjmp(f->resume, 1);
    f->started = true;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stacks + (size_t)lane * STACK_BYTES;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = NULL;
    makecontext(&f->context, fiber_main, 0);
    swapcontext(&scheduler_context, &f->context);
}

/* ------------------------------------------------------------------------------------------- work-groups -- */

static void describe(const fiber *f, char *to, size_t capacity) {
    if (f->state == FIBER_AT_BARRIER)
        snprintf(to, capacity, "the barrier of line %d", f->line);
    else
        snprintf(to, capacity, f->state == FIBER_DONE ? "its end" : "an operation of its wave");
}

/** Lanes [begin, end) must have stopped at one place; otherwise a fault. */
static bool agree(int begin, int end, const char *kind) {
    const fiber *first = &fibers[begin];
    for (int lane = begin + 1; lane < end; lane++) {
        const fiber *f = &fibers[lane];
        if (f->state == first->state && (f->state != FIBER_AT_BARRIER || f->line == first->line)) continue;
        run.failed = true;
        char there[40], here[40];
        describe(first, there, sizeof there);
        describe(f, here, sizeof here);
        snprintf(run.fault, sizeof run.fault,
                 "%s, work-group (%u, %u, %u): %s divergence: lane %d is at %s, lane %d at %s", run.kernel->name,
                 run.group[0], run.group[1], run.group[2], kind, begin, there, lane, here);
        return false;
    }
    return true;
}

/** Lets the waves go on whose lanes have all come to an exchange. `any`: there were some. */
static bool release_waves(bool *any) {
    *any = false;
    for (int begin = 0; begin < run.kernel->lanes; begin += run.wave) {
        const int end = begin + run.wave < run.kernel->lanes ? begin + run.wave : run.kernel->lanes;
        bool waits = false;
        for (int lane = begin; lane < end; lane++)
            waits = waits || fibers[lane].state == FIBER_AT_EXCHANGE;
        if (!waits) continue;
        if (!agree(begin, end, "wave")) return false;
        for (int lane = begin; lane < end; lane++)
            fibers[lane].state = FIBER_READY;
        *any = true;
    }
    return true;
}

/** Lanes between two barriers run in turn, every other time from the last to the first. */
static bool run_group(void) {
    const int n = run.kernel->lanes;
    for (int lane = 0; lane < n; lane++) {
        fibers[lane].state = FIBER_READY;
        fibers[lane].n_exchanges = 0;
    }
    for (int turn = 0;; turn++) {
        emu_next_interval();
        for (bool again = true; again;) {
            for (int i = 0; i < n; i++) {
                const int lane = turn % 2 ? n - 1 - i : i;
                if (fibers[lane].state != FIBER_READY) continue;
                resume(lane);
                if (run.failed) return false;
            }
            if (!release_waves(&again)) return false;
        }
        if (!agree(0, n, "barrier")) return false;
        if (fibers[0].state == FIBER_DONE) return true;
        for (int lane = 0; lane < n; lane++)
            fibers[lane].state = FIBER_READY;
    }
}

bool emu_run(const emu_kernel *kernel, const unsigned groups[3], int wave, void **arguments, const char **fault) {
    if (!stacks) {
        stacks = mmap(NULL, (size_t)MAX_LANES * STACK_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) abort();
    }
    run.kernel = kernel;
    run.arguments = arguments;
    run.wave = wave;
    run.failed = false;
    memcpy(run.groups, groups, sizeof run.groups);
    for (unsigned z = 0; z < groups[2]; z++)
        for (unsigned y = 0; y < groups[1]; y++)
            for (unsigned x = 0; x < groups[0]; x++) {
                run.group[0] = x;
                run.group[1] = y;
                run.group[2] = z;
                if (run_group()) continue;
                /* stopped in the middle of a kernel: these lanes start afresh */
                for (int lane = 0; lane < MAX_LANES; lane++)
                    fibers[lane].started = false;
                *fault = run.fault;
                return false;
            }
    return true;
}
