/* SPDX-License-Identifier: Apache-2.0
 *
 * The embedded code objects: which one serves a device, inflating and loading it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ZLIB_CONST
#include <zlib.h>

#include "backends/hip/hip.h"
#include "core/status.h"

/* zlib's functions, under names that cannot meet another zlib of the process (CMakeLists.txt). Hidden here, they are
 * hidden in the library. */
#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN int mobai_zlib_inflateInit2_(z_streamp stream, int window_bits, const char *version, int stream_bytes);
HIDDEN int mobai_zlib_inflate(z_streamp stream, int flush);
HIDDEN int mobai_zlib_inflateEnd(z_streamp stream);

static const hip_arch archs[] = {
    {"gfx90a", MOBAI_CAP_MFMA, 1024, 2},   {"gfx942", MOBAI_CAP_MFMA, 2048, 2},
    {"gfx950", MOBAI_CAP_MFMA, 4096, 2},   {"gfx1030", 0, 512, 16},
    {"gfx1100", MOBAI_CAP_WMMA, 1024, 16}, {"gfx1101", MOBAI_CAP_WMMA, 1024, 16},
    {"gfx1151", MOBAI_CAP_WMMA, 1024, 8},  {"gfx1200", MOBAI_CAP_WMMA, 2048, 16},
    {"gfx1201", MOBAI_CAP_WMMA, 2048, 16},
};

/** `arch` may be followed by features: "gfx90a:sramecc+:xnack-". Code is built for any setting of them. */
static bool is_arch(const char *name, const char *arch) {
    size_t length = strlen(name);
    return strncmp(name, arch, length) == 0 && (arch[length] == '\0' || arch[length] == ':');
}

const hip_code *hip_find_code(const char *arch) {
    for (size_t i = 0; i < hip_n_codes; i++)
        if (is_arch(hip_codes[i].arch, arch)) return &hip_codes[i];
    return NULL;
}

const hip_arch *hip_find_arch(const char *arch) {
    static const hip_arch unknown = {"", 0, 256, 2};
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (is_arch(archs[i].name, arch)) return &archs[i];
    return &unknown;
}

/** The size that a gzip stream ends with, of less than 4 GiB. */
static size_t inflated_bytes(const hip_code *code) {
    const unsigned char *end = code->packed_end;
    return (size_t)end[-4] | (size_t)end[-3] << 8 | (size_t)end[-2] << 16 | (size_t)end[-1] << 24;
}

static moba_status inflate_code(const hip_code *code, unsigned char *image, size_t bytes) {
    enum { GZIP_ONLY = 16 + MAX_WBITS };
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    stream.next_in = code->packed;
    stream.avail_in = (uInt)(code->packed_end - code->packed);
    stream.next_out = image;
    stream.avail_out = (uInt)bytes;
    int result = mobai_zlib_inflateInit2_(&stream, GZIP_ONLY, ZLIB_VERSION, (int)sizeof stream);
    if (result == Z_OK) {
        result = mobai_zlib_inflate(&stream, Z_FINISH);
        mobai_zlib_inflateEnd(&stream);
    }
    if (result == Z_STREAM_END && stream.avail_out == 0) return MOBA_OK;
    return mobai_fail(result == Z_MEM_ERROR ? MOBA_ERROR_OUT_OF_MEMORY : MOBA_ERROR_INTERNAL,
                      "the embedded %s kernels cannot be inflated (zlib error %d)", code->arch, result);
}

static moba_status load(mobai_device *device) {
    const size_t bytes = inflated_bytes(device->code);
    unsigned char *image = malloc(bytes);
    if (!image)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no host memory for the %s kernels: %zu bytes", device->code->arch,
                          bytes);
    moba_status status = inflate_code(device->code, image, bytes);
    if (status == MOBA_OK) {
        void *module = NULL;
        int result = device->base.driver->module_load(&module, image);
        if (result == HIP_SUCCESS) {
            device->module = module;
        } else {
            char what[80];
            snprintf(what, sizeof what, "load the %s kernels", device->code->arch);
            status = hip_fail(result, what);
        }
    }
    free(image); /* HIP keeps a copy */
    return status;
}

moba_status hip_simt_module(mobai_device *device, const char *kernel, void **module) {
    (void)kernel; /* one module holds them all */
    if (!device->module) MOBAI_TRY(load(device));
    *module = device->module;
    return MOBA_OK;
}
