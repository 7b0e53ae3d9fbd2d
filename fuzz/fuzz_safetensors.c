/* SPDX-License-Identifier: Apache-2.0
 *
 * safetensors: any bytes are read or refused with a sentence, and every tensor that is found can be loaded.
 */
#include <stdlib.h>

#include "cli/safetensors.h"
#include "fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void find_and_load(const mobai_safetensors *file, const char *name, size_t size) {
    mobai_tensor_view view;
    mobai_message message = {0};
    switch (mobai_safetensors_find(file, name, &view, &message)) {
    case MOBAI_FIND_NONE:
        return;
    case MOBAI_FIND_REFUSED:
        if (message.text[0] == '\0') abort();
        return;
    case MOBAI_FIND_OK:
        break;
    }
    void *loaded = NULL;
    mobai_element element = view.element == MOBAI_ELEMENT_I32 ? MOBAI_ELEMENT_I32 : MOBAI_ELEMENT_F32;
    if (view.offset > size || view.n_bytes > size - view.offset) abort();
    if (!mobai_tensor_load(mobai_safetensors_fd(file), &view, element, &loaded, &message)) abort();
    free(loaded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"q", "k", "v", "selection", "kconv_weight", ""};
    mobai_message message = {0};
    mobai_safetensors *file = mobai_safetensors_open(memory_file(data, size), &message);
    if (file == NULL && message.text[0] == '\0') abort();
    for (size_t i = 0; file != NULL && i < sizeof names / sizeof names[0]; i++)
        find_and_load(file, names[i], size);
    mobai_safetensors_close(file);
    return 0;
}
