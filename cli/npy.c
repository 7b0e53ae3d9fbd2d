/* SPDX-License-Identifier: Apache-2.0
 *
 * The .npy header is a Python dictionary literal with the keys descr, fortran_order and shape.
 */
#include "cli/npy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PREFIX_BYTES 12 /* magic, version, and the 4-byte header length of versions 2 and 3 */

typedef struct scanner {
    const char *at, *end;
} scanner;

static void skip_space(scanner *s) {
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r'))
        s->at++;
}

/** Takes the character when it is next. */
static bool take(scanner *s, char c) {
    skip_space(s);
    if (s->at >= s->end || *s->at != c) return false;
    s->at++;
    return true;
}

/** Takes a quoted string without escapes; points into the header. */
static bool take_string(scanner *s, const char **text, size_t *length) {
    skip_space(s);
    if (s->at >= s->end || (*s->at != '\'' && *s->at != '"')) return false;
    const char quote = *s->at++;
    const char *close = memchr(s->at, quote, (size_t)(s->end - s->at));
    if (close == NULL || memchr(s->at, '\\', (size_t)(close - s->at)) != NULL) return false;
    *text = s->at;
    *length = (size_t)(close - s->at);
    s->at = close + 1;
    return true;
}

static bool take_word(scanner *s, const char *word) {
    skip_space(s);
    size_t length = strlen(word);
    if ((size_t)(s->end - s->at) < length || memcmp(s->at, word, length) != 0) return false;
    s->at += length;
    return true;
}

static bool equals(const char *text, size_t length, const char *word) {
    return length == strlen(word) && memcmp(text, word, length) == 0;
}

static bool parse_descr(scanner *s, mobai_tensor_view *out, mobai_message *message) {
    const char *text;
    size_t length;
    char shown[48];
    if (!take_string(s, &text, &length)) {
        return mobai_say(message, "has an element type that is not a plain number; "
                                  "float32, float16 and int32 are read");
    }
    if (equals(text, length, "<f4")) {
        out->element = MOBAI_ELEMENT_F32;
    } else if (equals(text, length, "<f2")) {
        out->element = MOBAI_ELEMENT_F16;
    } else if (equals(text, length, "<i4")) {
        out->element = MOBAI_ELEMENT_I32;
    } else if (length > 0 && text[0] == '>') {
        return mobai_say(message, "is big-endian (type '%s'); little-endian is read, as array.astype('<f4') gives",
                         mobai_printable(shown, sizeof shown, text, length));
    } else {
        return mobai_say(message, "has element type '%s'; float32 ('<f4'), float16 ('<f2') and int32 ('<i4') are read",
                         mobai_printable(shown, sizeof shown, text, length));
    }
    return true;
}

static bool parse_shape(scanner *s, mobai_tensor_view *out, mobai_message *message) {
    if (!take(s, '(')) return mobai_say(message, "has a damaged header: the shape is not a tuple");
    out->rank = 0;
    while (!take(s, ')')) {
        if (out->rank == MOBAI_MAX_RANK) return mobai_say(message, "has more than %d dimensions", MOBAI_MAX_RANK);
        int64_t value = 0;
        skip_space(s);
        const char *begin = s->at;
        for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
            if (value > (INT64_MAX - 9) / 10) return mobai_say(message, "has a dimension larger than 2^62");
            value = value * 10 + (*s->at - '0');
        }
        if (s->at == begin)
            return mobai_say(message, "has a damaged header: the shape holds something that is not a count");
        take(s, 'L'); /* written by Python 2 */
        out->shape[out->rank++] = value;
        if (take(s, ',')) continue;
        if (!take(s, ')')) return mobai_say(message, "has a damaged header: the shape does not end");
        break;
    }
    return true;
}

static bool parse_dictionary(scanner *s, mobai_tensor_view *out, mobai_message *message) {
    enum { DESCR = 1, ORDER = 2, SHAPE = 4 };
    unsigned seen = 0;
    if (!take(s, '{')) return mobai_say(message, "has a damaged header: it is not a dictionary");
    while (!take(s, '}')) {
        const char *key;
        size_t length;
        if (!take_string(s, &key, &length) || !take(s, ':')) {
            return mobai_say(message, "has a damaged header: a key is missing or not closed");
        }
        unsigned bit = equals(key, length, "descr")           ? DESCR
                       : equals(key, length, "fortran_order") ? ORDER
                       : equals(key, length, "shape")         ? SHAPE
                                                              : 0u;
        char shown[48];
        mobai_printable(shown, sizeof shown, key, length);
        if (bit == 0) return mobai_say(message, "has a damaged header: unknown key '%s'", shown);
        if (seen & bit) return mobai_say(message, "has a damaged header: key '%s' stands twice", shown);
        seen |= bit;
        if (bit == DESCR) {
            if (!parse_descr(s, out, message)) return false;
        } else if (bit == SHAPE) {
            if (!parse_shape(s, out, message)) return false;
        } else if (take_word(s, "True")) {
            return mobai_say(message, "is in Fortran order; C order is read, as numpy.ascontiguousarray(array) gives");
        } else if (!take_word(s, "False")) {
            return mobai_say(message, "has a damaged header: fortran_order is neither True nor False");
        }
        if (take(s, ',')) continue;
        if (!take(s, '}')) return mobai_say(message, "has a damaged header: the dictionary does not end");
        break;
    }
    if (seen != (DESCR | ORDER | SHAPE)) {
        return mobai_say(message, "has a damaged header: descr, fortran_order and shape are needed");
    }
    skip_space(s);
    if (s->at != s->end) return mobai_say(message, "has a damaged header: text follows the dictionary");
    return true;
}

/** Length of magic, version and length field, and of the header text after them. */
static bool parse_prefix(const uint8_t *bytes, size_t n_bytes, size_t *prefix, size_t *text, mobai_message *message) {
    if (n_bytes < 10 || memcmp(bytes, "\x93NUMPY", 6) != 0) {
        return mobai_say(message, "is not an npy file: it does not begin with the npy signature");
    }
    if (bytes[6] < 1 || bytes[6] > 3 || bytes[7] != 0) {
        return mobai_say(message, "has npy version %d.%d; versions 1.0, 2.0 and 3.0 are read", bytes[6], bytes[7]);
    }
    *prefix = bytes[6] == 1 ? 10 : 12;
    if (n_bytes < *prefix) return mobai_say(message, "ends inside its header");
    uint64_t length = (uint64_t)bytes[8] | (uint64_t)bytes[9] << 8;
    if (bytes[6] > 1) length |= (uint64_t)bytes[10] << 16 | (uint64_t)bytes[11] << 24;
    if (length > MOBAI_NPY_MAX_HEADER) {
        return mobai_say(message, "claims a header of %" PRIu64 " bytes; at most %d are read", length,
                         MOBAI_NPY_MAX_HEADER);
    }
    *text = (size_t)length;
    return true;
}

bool mobai_npy_parse(const uint8_t *bytes, size_t n_bytes, uint64_t file_bytes, mobai_tensor_view *out,
                     mobai_message *message) {
    size_t prefix = 0, text = 0;
    mobai_tensor_view view = {.rank = 0};
    if (!parse_prefix(bytes, n_bytes, &prefix, &text, message)) return false;
    if (n_bytes - prefix < text) return mobai_say(message, "ends inside its header");
    scanner s = {(const char *)bytes + prefix, (const char *)bytes + prefix + text};
    if (!parse_dictionary(&s, &view, message)) return false;
    if (!mobai_shape_bytes(view.shape, view.rank, mobai_element_bytes(view.element), &view.n_bytes)) {
        return mobai_say(message, "claims a tensor of more than 2^62 bytes");
    }
    view.offset = prefix + text;
    uint64_t data_bytes = file_bytes > view.offset ? file_bytes - view.offset : 0;
    if (data_bytes != view.n_bytes) {
        char shape[200];
        return mobai_say(message, "holds %" PRIu64 " bytes of data, but shape %s of %s needs %" PRIu64, data_bytes,
                         mobai_shape_text(&view, shape, sizeof shape), mobai_element_name(view.element), view.n_bytes);
    }
    *out = view;
    return true;
}

bool mobai_npy_read_header(int fd, uint64_t file_bytes, mobai_tensor_view *out, mobai_message *message) {
    uint8_t bytes[PREFIX_BYTES + MOBAI_NPY_MAX_HEADER];
    size_t n = file_bytes < sizeof bytes ? (size_t)file_bytes : sizeof bytes;
    return mobai_file_read(fd, 0, bytes, n, message) && mobai_npy_parse(bytes, n, file_bytes, out, message);
}

size_t mobai_npy_header(const mobai_tensor_view *view, uint8_t out[MOBAI_NPY_HEADER_CAPACITY]) {
    const char *type = view->element == MOBAI_ELEMENT_F32 ? "<f4" : view->element == MOBAI_ELEMENT_F16 ? "<f2" : "<i4";
    char text[MOBAI_NPY_HEADER_CAPACITY];
    int used = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (", type);
    for (int32_t i = 0; i < view->rank; i++) {
        used += snprintf(text + used, sizeof text - (size_t)used, "%" PRId64 "%s", view->shape[i],
                         view->rank == 1      ? ","
                         : i + 1 < view->rank ? ", "
                                              : "");
    }
    used += snprintf(text + used, sizeof text - (size_t)used, "), }");
    /* The data begins at a multiple of 64 bytes; the header ends with a newline. */
    size_t total = (10 + (size_t)used + 1 + 63) / 64 * 64;
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (uint8_t)((total - 10) & 0xff);
    out[9] = (uint8_t)((total - 10) >> 8);
    memcpy(out + 10, text, (size_t)used);
    memset(out + 10 + used, ' ', total - 10 - (size_t)used - 1);
    out[total - 1] = '\n';
    return total;
}
