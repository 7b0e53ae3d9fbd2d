/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors of more than 2^31 elements (2^31 bytes where a device has no larger buffers): few rows, spread over strides
 * so large that every 32-bit offset overflows. Only the rows are touched, so a device with lazily committed memory
 * needs little of it. Results must be bit-identical to those of packed tensors. And keys enough for what kernels do
 * only where they have many lanes.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

enum { ELEMENT = 2, N_TENSORS = 8 };

typedef struct spread {
    moba_tensor tensor;
    int64_t rows, heads;
} spread;

static size_t offset_of(const th_case *c, const spread *s, int64_t row, int64_t head) {
    int64_t length = s->rows / c->shape.batch;
    int64_t element = head * s->tensor.head_stride;
    element += c->use_cu ? row * s->tensor.token_stride
                         : row / length * s->tensor.batch_stride + row % length * s->tensor.token_stride;
    return (size_t)element * ELEMENT;
}

/* Copies rows between the spread tensor and packed bytes; `write`: to the device. */
static bool transfer(const th_session *session, const th_case *c, const spread *s, unsigned char *packed, bool write) {
    moba_stream stream = {NULL};
    size_t row_bytes = (size_t)c->shape.head_dim * ELEMENT;
    for (int64_t t = 0; t < s->rows; t++)
        for (int64_t h = 0; h < s->heads; h++) {
            moba_buffer at = s->tensor.buffer;
            at.offset += offset_of(c, s, t, h);
            unsigned char *host = packed + (size_t)(t * s->heads + h) * row_bytes;
            moba_status status = write ? moba_buffer_write(session->context, stream, at, host, row_bytes)
                                       : moba_buffer_read(session->context, stream, at, host, row_bytes);
            if (!th_ok(session, c, status, "a row past 2^31 elements")) return false;
        }
    return true;
}

typedef enum axis { AXIS_TOKEN, AXIS_HEAD, AXIS_BATCH } axis;

/* The last row or head of the tensor is `past` elements away from the first. */
static moba_tensor strides(const th_case *c, int64_t rows, int64_t heads, axis which, int64_t past) {
    const int64_t d = c->shape.head_dim, length = rows / c->shape.batch;
    moba_tensor t = {MOBA_BUFFER_NULL, heads * d, d, length * heads * d};
    if (which == AXIS_TOKEN) t.token_stride = past / (c->use_cu ? rows - 1 : length - 1) + 1;
    if (which == AXIS_HEAD) t.head_stride = past / (heads > 1 ? heads - 1 : 1) + 1, t.token_stride = d;
    if (which == AXIS_BATCH) t.batch_stride = past / (c->shape.batch - 1) + 1;
    if (which != AXIS_BATCH) t.batch_stride = length * t.token_stride;
    return t;
}

static void compare(const th_session *session, const th_case *c, const char *name, const spread *s,
                    const th_buffer *packed) {
    moba_stream stream = {NULL};
    unsigned char *far = th_allocate(packed->bytes, 1), *near = th_allocate(packed->bytes, 1);
    if (moba_buffer_read(session->context, stream, packed->data, near, packed->bytes) != MOBA_OK)
        th_fatal("%s", moba_last_error());
    if (transfer(session, c, s, far, false) && memcmp(far, near, packed->bytes) != 0)
        th_fail(session, c, "%s past 2^31 elements differs from the packed run", name);
    free(far);
    free(near);
}

/* False: the device refuses buffers of that size. */
static bool run_spread(const th_session *session, const th_case *c, axis which, int64_t past) {
    th_exec *e = th_open(session, c, NULL);
    th_result r;
    if (e == NULL) return true;
    if (!th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &r)) th_fatal("the packed run failed");
    th_result_free(&r);

    const th_buffer *packed[N_TENSORS] = {&e->q, &e->dout, &e->o, &e->dq, &e->k, &e->v, &e->dk, &e->dv};
    static const char *const names[N_TENSORS] = {"q", "dout", "o", "dq", "k", "v", "dk", "dv"};
    spread s[N_TENSORS];
    bool enough = true;
    memset(s, 0, sizeof s);
    for (int x = 0; x < N_TENSORS; x++) {
        s[x].rows = x < 4 ? c->shape.total_q : c->shape.total_k;
        s[x].heads = x < 4 ? c->shape.n_q_heads : c->shape.n_kv_heads;
        s[x].tensor = strides(c, s[x].rows, s[x].heads, which, past);
        size_t bytes = offset_of(c, &s[x], s[x].rows - 1, s[x].heads - 1) + (size_t)c->shape.head_dim * ELEMENT;
        if (bytes < (uint64_t)past / 0x1000000 * 0x1000000 * ELEMENT)
            th_fatal("%s is smaller than asked for", names[x]);
        enough = enough && moba_buffer_create(session->context, (bytes + 3) / 4 * 4, &s[x].tensor.buffer) == MOBA_OK;
    }
    if (enough) {
        static const int inputs[] = {0, 1, 4, 5};
        for (size_t x = 0; x < COUNT(inputs); x++)
            transfer(session, c, &s[inputs[x]], packed[inputs[x]]->image + TH_GUARD, true);
        moba_stream stream = {NULL};
        moba_forward_args f = th_forward_args(e);
        moba_backward_args b = th_backward_args(e);
        f.in.q = b.in.q = s[0].tensor;
        f.in.k = b.in.k = s[4].tensor;
        f.in.v = b.in.v = s[5].tensor;
        f.o = b.o = s[2].tensor;
        b.dout = s[1].tensor;
        b.dq = s[3].tensor;
        b.dk = s[6].tensor;
        b.dv = s[7].tensor;
        if (th_ok(session, c, moba_forward(e->plan, stream, &f), "moba_forward") &&
            th_ok(session, c, moba_backward(e->plan, stream, &b), "moba_backward")) {
            compare(session, c, "o", &s[2], packed[2]);
            compare(session, c, "dq", &s[3], packed[3]);
            compare(session, c, "dk", &s[6], packed[6]);
            compare(session, c, "dv", &s[7], packed[7]);
        }
    }
    for (int x = 0; x < N_TENSORS; x++)
        moba_buffer_destroy(session->context, s[x].tensor.buffer);
    th_close(e);
    return enough;
}

/* Past 2^31 elements; on a device without buffers of 4 GiB (some software drivers), past 2^31 bytes. */
static void check_axis(const th_session *sessions, size_t n, const th_case *c, axis which) {
    for (size_t i = 0; i < n; i++)
        if (!run_spread(&sessions[i], c, which, INT64_C(0x8000f000)) &&
            !run_spread(&sessions[i], c, which, INT64_C(0x4000f000)))
            fprintf(stderr, "%s: no memory for 8 tensors of 2 GiB: not run\n", sessions[i].backend);
}

static void check_tokens(const th_session *sessions, size_t n, const th_case *c) {
    check_axis(sessions, n, c, AXIS_TOKEN);
}

static void check_heads(const th_session *sessions, size_t n, const th_case *c) {
    check_axis(sessions, n, c, AXIS_HEAD);
}

static void check_batches(const th_session *sessions, size_t n, const th_case *c) {
    check_axis(sessions, n, c, AXIS_BATCH);
}

Test(large, token_strides) {
    static const char *const problems[] = {"b1q60k60h4g2d64B16t3c,f16,det", "b1q60k60h4g2d64B16t1c,bf16,det,dense",
                                           "b2q40k40h2g1d64B16t2c,bf16,det,kconv=3,lens=40+23/40+29"};
    th_for_each(problems, COUNT(problems), check_tokens);
}

Test(large, head_strides) {
    static const char *const problems[] = {"b1q40k40h4g2d64B16t3c,bf16,det", "b2q33k33h4g2d48B16t2n,f16,det"};
    th_for_each(problems, COUNT(problems), check_heads);
}

Test(large, batch_strides) {
    static const char *const problems[] = {"b3q40k50h2g1d64B16t3c,f16,det", "b2q33k33h4g2d64B16t1n,bf16,det,dense"};
    th_for_each(problems, COUNT(problems), check_batches);
}

/* More than 2^24 elements: the generated convolution walks its longer runs, and sequences end inside of them. */
Test(large, key_convolution) {
    static const char *const problems[] = {"b2q16k40000h1g1d256B512t2c,bf16,kconv=3,lens=9+16/40000+27001;tail=70"};
    th_for_each(problems, COUNT(problems), th_check_both);
}
