/* SPDX-License-Identifier: Apache-2.0
 *
 * test_driver WORD...: with the driver at hand the CUDA backend is unavailable; the error sentence has every WORD, and
 * the CPU backend serves on.
 */
#include <stdio.h>
#include <string.h>

#include "moba/moba.h"

int main(int argc, char **argv) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "cuda";
    moba_status status = moba_context_create(&options, &context);
    printf("%s: %s\n", moba_status_name(status), moba_last_error());
    if (status != MOBA_ERROR_BACKEND_UNAVAILABLE || context) {
        fprintf(stderr, "the status is not MOBA_ERROR_BACKEND_UNAVAILABLE\n");
        return 1;
    }
    for (int i = 1; i < argc; i++)
        if (!strstr(moba_last_error(), argv[i])) {
            fprintf(stderr, "the sentence lacks \"%s\"\n", argv[i]);
            return 1;
        }
    options.backend = "cuda,cpu";
    status = moba_context_create(&options, &context);
    if (status != MOBA_OK || strcmp(moba_context_backend(context), "cpu") != 0) {
        fprintf(stderr, "cuda,cpu: %s: %s\n", moba_status_name(status), moba_last_error());
        return 1;
    }
    moba_context_destroy(context);
    return 0;
}
