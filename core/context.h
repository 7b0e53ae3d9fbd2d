/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOBAI_CONTEXT_H
#define MOBAI_CONTEXT_H

#include "core/backend.h"

struct moba_context {
    const mobai_backend *backend;
    mobai_device *device;
    mobai_caps caps; /* the device's, after MOBA_CAPS_MASK */
    bool validate;   /* MOBA_VALIDATE */
    char *kernel;    /* MOBA_KERNEL, checked; NULL when unset */
};

/**
 * Opens `entry`'s backend. `options->device` -1 takes the best device. Used by moba_context_create() for each name,
 * and by tests with a table of their own.
 */
moba_status mobai_context_open(const mobai_backend *backend, const moba_context_options *options, moba_context **out);

/**
 * Copies a caller's structure that starts with struct_size into `to` (size `to_size`): missing fields become 0,
 * unknown ones must be 0. `name` is for the sentence.
 */
moba_status mobai_copy_struct(void *to, size_t to_size, const void *from, const char *name);

#endif
