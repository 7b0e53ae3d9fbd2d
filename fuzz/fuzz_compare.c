/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON lines of measurements: any bytes are read or refused with a sentence, and what was read has names and times.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/compare.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mobai_measurement measurement;
    mobai_message message = {0};
    if (!mobai_measurement_parse((const char *)data, size, &measurement, &message)) {
        if (message.text[0] == '\0') abort();
        return 0;
    }
    const size_t names = strlen(measurement.device) + strlen(measurement.driver) + strlen(measurement.version) +
                         strlen(measurement.backend);
    const bool timed = measurement.min_ms > 0.0 && measurement.min_ms <= measurement.median_ms &&
                       measurement.median_ms <= measurement.p90_ms;
    if (names > size || !timed || measurement.text == NULL) abort();
    if ((measurement.family == NULL) != (measurement.problem.lens_q != NULL)) abort();
    mobai_measurement_free(&measurement);
    return 0;
}
