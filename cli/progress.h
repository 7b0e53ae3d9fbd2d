/* SPDX-License-Identifier: Apache-2.0
 *
 * One progress line on stderr, for work that lasts over a second. Nothing is ever shown where stderr is not a
 * terminal. There is one line for the whole program; the calls may come from any thread.
 */
#ifndef MOBAI_PROGRESS_H
#define MOBAI_PROGRESS_H

#include <stdint.h>

/** Names what is being done now ("forward on cpu") and starts or resumes the display; resets done and total to 0. */
void mobai_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** How far the present step is; shown as a percentage when `total` > 0. Cheap enough for inner loops. */
void mobai_progress_at(uint64_t done, uint64_t total);

/** Clears the line, so that other text can be printed. The display comes back while work goes on. */
void mobai_progress_clear(void);

/** Clears the line and ends the display. A later mobai_progress() starts it again. */
void mobai_progress_end(void);

#endif
