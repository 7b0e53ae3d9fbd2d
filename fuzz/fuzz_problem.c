/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem strings: any text is read or refused with a sentence, and what was read prints to a text that reads the same.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/problem_string.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *text, bool partial) {
    mobai_bench_problem problem, again;
    mobai_message message = {0};
    if (!mobai_problem_parse(text, partial, &problem, &message)) {
        if (message.text[0] == '\0') abort();
        return;
    }
    if (!partial) {
        char *printed = mobai_problem_print(&problem);
        if (printed == NULL || !mobai_problem_parse(printed, false, &again, &message)) abort();
        char *reprinted = mobai_problem_print(&again);
        if (reprinted == NULL || strcmp(printed, reprinted) != 0) abort();
        free(printed);
        free(reprinted);
        mobai_problem_free(&again);
    }
    mobai_problem_free(&problem);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    if (text == NULL) return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    check_text(text, false);
    check_text(text, true);
    free(text);
    return 0;
}
