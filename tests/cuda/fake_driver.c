/* SPDX-License-Identifier: Apache-2.0
 *
 * A CUDA driver that cannot be used: MOBA_TEST_DRIVER says why. A number: its version, as cuDriverGetVersion gives it;
 * "no_device"; "no_start". With FAKE_CUDA_DEVICE instead it has the devices of fake_device.c.
 */
#include <stdlib.h>
#include <string.h>

int cuDriverGetVersion(int *version);
int cuInit(unsigned flags);
int cuDeviceGetCount(int *count);
int cuGetErrorString(int result, const char **text);

static int is(const char *state) {
    const char *named = getenv("MOBA_TEST_DRIVER");
    return named && strcmp(named, state) == 0;
}

int cuDriverGetVersion(int *version) {
    const char *named = getenv("MOBA_TEST_DRIVER");
    *version = named && *named >= '0' && *named <= '9' ? atoi(named) : 99020;
    return 0;
}

int cuInit(unsigned flags) {
    (void)flags;
    return is("no_device") ? 100 : is("no_start") ? 999 : 0;
}

int cuDeviceGetCount(int *count) {
    *count = getenv("FAKE_CUDA_DEVICE") ? 2 : 0;
    return 0;
}

int cuGetErrorString(int result, const char **text) {
    (void)result;
    *text = "a fault of the test";
    return 0;
}
