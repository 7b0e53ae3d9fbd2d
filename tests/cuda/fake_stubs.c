/* SPDX-License-Identifier: Apache-2.0
 *
 * Every symbol that the CUDA backend looks up, as a call that fails; fake_driver.c has the few that matter.
 */
#include "backends/cuda/driver.h"

#define STUB(symbol)                                                                                                   \
    int symbol(void);                                                                                                  \
    __attribute__((weak)) int symbol(void) { return 999; }
#define SHARED(member, symbol) STUB(symbol)
#define OWN(member, symbol, arguments) STUB(symbol)
MOBAI_CUDA_SHARED_API(SHARED)
MOBAI_CUDA_API(OWN)
