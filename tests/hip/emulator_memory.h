/* SPDX-License-Identifier: Apache-2.0
 *
 * Between the emulator's scheduler and its memory checks.
 */
#ifndef MOBA_TESTS_EMULATOR_MEMORY_H
#define MOBA_TESTS_EMULATOR_MEMORY_H

#include <stddef.h>

/** The stack of the lane that runs. */
const char *emu_stack(void);
size_t emu_stack_bytes(void);

/** A new interval between barriers, or a new work-group. */
void emu_next_interval(void);

#endif
