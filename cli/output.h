/* SPDX-License-Identifier: Apache-2.0
 *
 * Output files that appear complete or not at all: each is written under a temporary name in its own directory, and
 * all are renamed together at the end. Until then the files of an earlier run stay as they are. The temporary files
 * are removed on failure and when the program is ended by SIGINT, SIGTERM or SIGHUP.
 */
#ifndef MOBAI_OUTPUT_H
#define MOBAI_OUTPUT_H

#include "cli/cli.h"

#define MOBAI_MAX_OUTPUTS 8

/** Makes `directory` and its missing parents. The sentence names what could not be made. */
bool mobai_output_directory(const char *directory, mobai_message *message);

/** Creates the temporary file of `directory`/`name`; returns its number, or -1 with a sentence. */
int mobai_output_create(const char *directory, const char *name, mobai_message *message);

/** Appends to a file. */
bool mobai_output_write(int number, const void *data, size_t n_bytes, mobai_message *message);

/** Gives every file its own name. On failure nothing that was not renamed yet is left behind. */
bool mobai_output_commit(mobai_message *message);

/** Removes all temporary files; does nothing after a commit. */
void mobai_output_discard(void);

#endif
