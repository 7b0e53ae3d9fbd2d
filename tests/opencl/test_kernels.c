/* SPDX-License-Identifier: Apache-2.0
 *
 * The least device that the generated kernels promise to run on: work-groups of 256 lanes, 32 KiB of shared memory.
 */
#include <criterion/criterion.h>

#include "codegen/host/simt.h"

Test(kernels, fit_the_least_device) {
    cr_assert_gt(mobai_n_simt_instances, 50);
    for (size_t i = 0; i < mobai_n_simt_instances; i++) {
        const mobai_simt_instance *k = &mobai_simt_instances[i];
        cr_expect(k->lanes >= 1 && k->lanes <= 256, "%s: %d lanes", k->name, (int)k->lanes);
        cr_expect(k->shared_bytes >= 0 && k->shared_bytes <= 32768, "%s: %d bytes", k->name, (int)k->shared_bytes);
    }
}
