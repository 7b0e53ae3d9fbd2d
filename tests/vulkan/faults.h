/* SPDX-License-Identifier: Apache-2.0
 *
 * Faults on demand in a library that stands in for a loader (tests/vulkan/interpose.c, tests/opencl/interpose.c): every
 * call that can fail asks fault_here() first. A test finds the two exported functions with dlsym().
 */
#ifndef FAULTS_H
#define FAULTS_H

enum { FAULT_MAX_CALLS = 4096 };

/** From now on calls are counted anew, and call `at` (from 0; -1: none) gives `code` instead of being made. */
typedef void fault_arm_function(int at, int code);
/** Name of the n-th call since then; NULL past the last. */
typedef const char *fault_call_function(int n);

#ifndef FAULTS_TEST
static int fault_n, fault_at = -1, fault_code;
static const char *fault_calls[FAULT_MAX_CALLS];

static int fault_here(const char *name) {
    int n = fault_n++;
    if (n < FAULT_MAX_CALLS) fault_calls[n] = name;
    return n == fault_at ? fault_code : 0;
}

__attribute__((visibility("default"))) fault_arm_function fault_arm;
void fault_arm(int at, int code) {
    fault_n = 0;
    fault_at = at;
    fault_code = code;
}

__attribute__((visibility("default"))) fault_call_function fault_call;
const char *fault_call(int n) { return n < fault_n && n < FAULT_MAX_CALLS ? fault_calls[n] : 0; }
#endif
#endif
