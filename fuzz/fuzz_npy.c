/* SPDX-License-Identifier: Apache-2.0
 *
 * npy: any bytes are read or refused with a sentence, and an accepted header survives being written again.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/npy.h"
#include "fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(const mobai_tensor_view *view) {
    uint8_t header[MOBAI_NPY_HEADER_CAPACITY];
    size_t n = mobai_npy_header(view, header);
    mobai_tensor_view again;
    mobai_message message;
    if (!mobai_npy_parse(header, n, n + view->n_bytes, &again, &message)) abort();
    if (again.element != view->element || again.rank != view->rank || again.n_bytes != view->n_bytes) abort();
    if (memcmp(again.shape, view->shape, (size_t)view->rank * sizeof view->shape[0]) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mobai_tensor_view view;
    mobai_message message = {0};
    uint64_t file_bytes = 0;
    int fd = mobai_file_open(memory_file(data, size), &file_bytes, &message);
    if (fd < 0) abort();
    if (mobai_npy_read_header(fd, file_bytes, &view, &message)) {
        void *loaded = NULL;
        mobai_element element = view.element == MOBAI_ELEMENT_I32 ? MOBAI_ELEMENT_I32 : MOBAI_ELEMENT_BF16;
        if (view.offset + view.n_bytes != size) abort();
        if (!mobai_tensor_load(fd, &view, element, &loaded, &message)) abort();
        free(loaded);
        check_round_trip(&view);
    } else if (message.text[0] == '\0') {
        abort();
    }
    close(fd);
    return 0;
}
