/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs on a device: guarded buffers, strided tensors, canaries.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

enum { GUARD = TH_GUARD };
enum { FLOAT_CANARY = 0xff /* NaN in every dtype */, INDEX_CANARY = 0x7f /* no legal block id */ };

/* ----------------------------------------------------------------------------------------------- elements -- */

static size_t element_bytes(int dtype) { return dtype == REF_F32 ? 4 : 2; }

/* `x` must be representable. */
static void encode(int dtype, double x, unsigned char *to) {
    uint32_t bits;
    float f = (float)x;
    memcpy(&bits, &f, sizeof bits);
    if (dtype == REF_F32) {
        memcpy(to, &bits, 4);
        return;
    }
    uint16_t half = (uint16_t)(bits >> 16);
    if (dtype == REF_F16) {
        uint32_t sign = bits >> 16 & 0x8000u;
        double magnitude = fabs(x);
        if (isnan(x))
            half = 0x7e00;
        else if (isinf(x))
            half = (uint16_t)(sign | 0x7c00u);
        else if (magnitude < 0x1p-14)
            half = (uint16_t)(sign | (uint32_t)(magnitude * 0x1p24));
        else
            half = (uint16_t)(sign | (uint32_t)((ilogb(magnitude) + 15) << 10) |
                              ((uint32_t)ldexp(magnitude, 10 - ilogb(magnitude)) & 0x3ffu));
    }
    memcpy(to, &half, 2);
}

static double decode(int dtype, const unsigned char *from) {
    uint32_t bits = 0;
    uint16_t half;
    float f;
    if (dtype == REF_F16) {
        memcpy(&half, from, 2);
        double sign = half & 0x8000 ? -1 : 1;
        int exponent = half >> 10 & 31, fraction = half & 1023;
        if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
        return sign * (exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25));
    }
    if (dtype == REF_F32) {
        memcpy(&bits, from, 4);
    } else {
        memcpy(&half, from, 2);
        bits = (uint32_t)half << 16;
    }
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* ---------------------------------------------------------------------------------------- guarded buffers -- */

static void create(th_exec *e, th_buffer *b, size_t bytes, int canary) {
    b->bytes = bytes;
    b->image = th_allocate(bytes + 2 * GUARD, 1);
    memset(b->image, canary, bytes + 2 * GUARD);
    size_t rounded = (bytes + 2 * GUARD + 3) / 4 * 4;
    moba_status status = moba_buffer_create(e->context, rounded, &b->base);
    if (status != MOBA_OK) th_fatal("%s: %zu bytes: %s", e->c->text, rounded, moba_last_error());
    b->data = b->base;
    b->data.offset += GUARD;
}

static void upload(const th_exec *e, const th_buffer *b) {
    moba_stream stream = {NULL};
    if (moba_buffer_write(e->context, stream, b->base, b->image, b->bytes + 2 * GUARD) != MOBA_OK)
        th_fatal("%s: write: %s", e->c->text, moba_last_error());
}

static unsigned char *download(const th_exec *e, const th_buffer *b) {
    moba_stream stream = {NULL};
    unsigned char *copy = th_allocate(b->bytes + 2 * GUARD, 1);
    if (moba_buffer_read(e->context, stream, b->base, copy, b->bytes + 2 * GUARD) != MOBA_OK)
        th_fatal("%s: read: %s", e->c->text, moba_last_error());
    return copy;
}

static void release(th_exec *e, th_buffer *b) {
    if (b->image == NULL) return;
    moba_buffer_destroy(e->context, b->base);
    free(b->image);
}

/* Compares with the image; frees `copy`. */
static void check_untouched(const th_exec *e, const th_buffer *b, unsigned char *copy, const char *name) {
    for (size_t i = 0; i < b->bytes + 2 * GUARD; i++)
        if (copy[i] != b->image[i]) {
            th_fail(e->session, e->c, "%s: byte %lld of %zu (outside what may be written) changed from %02x to %02x",
                    name, (long long)i - GUARD, b->bytes, b->image[i], copy[i]);
            break;
        }
    free(copy);
}

static void check_input(const th_exec *e, const th_buffer *b, const char *name) {
    if (b->image != NULL) check_untouched(e, b, download(e, b), name);
}

/* Takes the payload out of an output buffer; the guards must be unchanged. */
static void take_payload(const th_exec *e, const th_buffer *b, const char *name, void *to, size_t bytes) {
    unsigned char *copy = download(e, b);
    memcpy(to, copy + GUARD, bytes);
    memcpy(copy + GUARD, b->image + GUARD, bytes);
    check_untouched(e, b, copy, name);
}

/* ------------------------------------------------------------------------------------------------ tensors -- */

/* Offset in elements of row t of a tensor with these strides. */
static int64_t row_offset(const th_exec *e, const moba_tensor *view, int64_t t, int64_t total) {
    int64_t batch = e->c->shape.batch;
    if (e->c->use_cu) return t * view->token_stride;
    int64_t length = total / batch;
    return t / length * view->batch_stride + t % length * view->token_stride;
}

static moba_tensor make_view(const th_exec *e, int64_t total, int64_t heads) {
    int64_t d = e->c->shape.head_dim, length = e->c->use_cu ? total : total / e->c->shape.batch;
    moba_tensor v = {MOBA_BUFFER_NULL, heads * d, d, 0};
    switch (e->c->layout) {
    case TH_THD:
    case TH_BSHD:
        break;
    case TH_BHSD:
        v.token_stride = d;
        v.head_stride = length * d;
        break;
    case TH_SLICED:
        v.head_stride = d + 1;
        v.token_stride = heads * v.head_stride + 5;
        break;
    case TH_FUSED:
        v.token_stride = heads * d + 64;
        break;
    }
    int64_t sequence = e->c->layout == TH_BHSD ? heads * length * d : length * v.token_stride;
    v.batch_stride = sequence + (e->c->layout == TH_BSHD ? 3 * d : e->c->layout == TH_SLICED ? 7 : 0);
    if (e->c->use_cu) v.batch_stride = 12345; /* ignored */
    return v;
}

static size_t view_elements(const th_exec *e, const moba_tensor *view, int64_t total, int64_t heads) {
    if (total == 0 || heads == 0) return 0;
    return (size_t)(row_offset(e, view, total - 1, total) + (heads - 1) * view->head_stride + e->c->shape.head_dim);
}

/* Head-major: the last element of the last row of the last head is the last of all. */
static void put_tensor(const th_exec *e, th_buffer *b, const moba_tensor *view, int64_t total, int64_t heads,
                       const double *from) {
    int dtype = e->c->shape.dtype, d = e->c->shape.head_dim;
    for (int64_t t = 0; t < total; t++)
        for (int64_t h = 0; h < heads; h++)
            for (int c = 0; c < d; c++)
                encode(dtype, *from++,
                       b->image + GUARD +
                           (size_t)(row_offset(e, view, t, total) + h * view->head_stride + c) * element_bytes(dtype));
    upload(e, b);
}

static double *get_tensor(const th_exec *e, const th_buffer *b, const moba_tensor *view, int64_t total, int64_t heads,
                          const char *name) {
    int dtype = e->c->shape.dtype, d = e->c->shape.head_dim;
    unsigned char *copy = download(e, b);
    double *out = th_allocate((size_t)(total * heads * d), sizeof *out), *to = out;
    for (int64_t t = 0; t < total; t++)
        for (int64_t h = 0; h < heads; h++)
            for (int c = 0; c < d; c++) {
                size_t at =
                    GUARD + (size_t)(row_offset(e, view, t, total) + h * view->head_stride + c) * element_bytes(dtype);
                *to++ = decode(dtype, copy + at);
                memcpy(copy + at, b->image + at, element_bytes(dtype));
            }
    check_untouched(e, b, copy, name);
    return out;
}

static double *get_floats(const th_exec *e, const th_buffer *b, int64_t n, const char *name) {
    float *raw = th_allocate((size_t)n, sizeof *raw);
    double *out = th_allocate((size_t)n, sizeof *out);
    take_payload(e, b, name, raw, (size_t)n * sizeof *raw);
    for (int64_t i = 0; i < n; i++)
        out[i] = (double)raw[i];
    free(raw);
    return out;
}

/* ----------------------------------------------------------------------------------------- open and close -- */

static void create_tensor(th_exec *e, th_buffer *b, const moba_tensor *view, int64_t total, int64_t heads) {
    create(e, b, view_elements(e, view, total, heads) * element_bytes(e->c->shape.dtype), FLOAT_CANARY);
}

static void create_lengths(th_exec *e, th_buffer *b, const int32_t *cu) {
    create(e, b, (size_t)(e->c->shape.batch + 1) * sizeof *cu, INDEX_CANARY);
    memcpy(b->image + GUARD, cu, b->bytes);
    upload(e, b);
}

th_exec *th_open_in(const th_session *session, moba_context *context, const th_case *c, const moba_problem *problem) {
    const ref_shape *s = &c->shape;
    th_exec *e = th_allocate(1, sizeof *e);
    e->session = session;
    e->context = context;
    e->c = c;
    e->problem = problem != NULL ? *problem : c->problem;
    if (!th_ok(session, c, moba_plan_create(context, &e->problem, &e->plan), "moba_plan_create")) {
        free(e);
        return NULL;
    }
    size_t saved_bytes, workspace_bytes;
    if (moba_plan_saved(e->plan, &saved_bytes) != MOBA_OK || moba_plan_workspace(e->plan, &workspace_bytes) != MOBA_OK)
        th_fatal("%s: %s", c->text, moba_last_error());
    e->q_view = make_view(e, s->total_q, s->n_q_heads);
    e->k_view = make_view(e, s->total_k, s->n_kv_heads);
    th_buffer *like_q[] = {&e->q, &e->o, &e->dout, &e->dq}, *like_k[] = {&e->k, &e->v, &e->dk, &e->dv};
    for (size_t i = 0; i < 4; i++) {
        create_tensor(e, like_q[i], &e->q_view, s->total_q, s->n_q_heads);
        create_tensor(e, like_k[i], &e->k_view, s->total_k, s->n_kv_heads);
    }
    put_tensor(e, &e->q, &e->q_view, s->total_q, s->n_q_heads, c->q);
    put_tensor(e, &e->dout, &e->q_view, s->total_q, s->n_q_heads, c->dout);
    put_tensor(e, &e->k, &e->k_view, s->total_k, s->n_kv_heads, c->k);
    put_tensor(e, &e->v, &e->k_view, s->total_k, s->n_kv_heads, c->v);
    create(e, &e->lse, (size_t)th_lse_elements(c) * sizeof(float), FLOAT_CANARY);
    create(e, &e->workspace, workspace_bytes, FLOAT_CANARY);
    e->workspace_fill = FLOAT_CANARY;
    if (!s->dense) {
        create(e, &e->selection, (size_t)th_selection_elements(c) * sizeof(int32_t), INDEX_CANARY);
        create(e, &e->saved, saved_bytes, INDEX_CANARY);
    }
    if (c->use_cu) {
        create_lengths(e, &e->cu_q, c->cu_q);
        create_lengths(e, &e->cu_k, c->cu_k);
    }
    if (s->kconv_width > 0) {
        size_t n = (size_t)th_w_elements(c), each = element_bytes(s->dtype);
        create(e, &e->w, n * each, FLOAT_CANARY);
        create(e, &e->dw, n * sizeof(float), FLOAT_CANARY);
        for (size_t i = 0; i < n; i++)
            encode(s->dtype, c->w[i], e->w.image + GUARD + i * each);
        upload(e, &e->w);
    }
    return e;
}

th_exec *th_open(const th_session *session, const th_case *c, const moba_problem *problem) {
    return th_open_in(session, session->context, c, problem);
}

void th_close(th_exec *e) {
    if (e == NULL) return;
    th_buffer *all[] = {&e->q,   &e->k,         &e->v,     &e->w,  &e->cu_q, &e->cu_k, &e->dout, &e->o,
                        &e->lse, &e->selection, &e->saved, &e->dq, &e->dk,   &e->dv,   &e->dw,   &e->workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        release(e, all[i]);
    moba_plan_destroy(e->plan);
    free(e);
}

/* --------------------------------------------------------------------------------------------------- runs -- */

static moba_tensor with_buffer(moba_tensor view, const th_buffer *b) {
    view.buffer = b->data;
    return view;
}

moba_inputs th_inputs(const th_exec *e) {
    moba_inputs in = {.q = with_buffer(e->q_view, &e->q),
                      .k = with_buffer(e->k_view, &e->k),
                      .v = with_buffer(e->k_view, &e->v),
                      .kconv_weight = e->w.data,
                      .cu_seqlens_q = e->cu_q.data,
                      .cu_seqlens_k = e->cu_k.data,
                      .batch = e->c->shape.batch,
                      .total_q = e->c->shape.total_q,
                      .total_k = e->c->shape.total_k};
    return in;
}

moba_forward_args th_forward_args(const th_exec *e) {
    moba_forward_args a = MOBA_FORWARD_ARGS_INIT;
    a.in = th_inputs(e);
    a.o = with_buffer(e->q_view, &e->o);
    a.lse = e->lse.data;
    a.selection = e->selection.data;
    a.saved = e->saved.data;
    a.saved_bytes = e->saved.bytes;
    a.workspace = e->workspace.data;
    a.workspace_bytes = e->workspace.bytes;
    return a;
}

moba_attend_args th_attend_args(const th_exec *e) {
    moba_attend_args a = MOBA_ATTEND_ARGS_INIT;
    a.in = th_inputs(e);
    a.selection = e->selection.data;
    a.o = with_buffer(e->q_view, &e->o);
    a.lse = e->lse.data;
    a.saved = e->saved.data;
    a.saved_bytes = e->saved.bytes;
    a.workspace = e->workspace.data;
    a.workspace_bytes = e->workspace.bytes;
    return a;
}

moba_route_args th_route_args(const th_exec *e) {
    moba_route_args a = MOBA_ROUTE_ARGS_INIT;
    a.in = th_inputs(e);
    a.selection = e->selection.data;
    a.workspace = e->workspace.data;
    a.workspace_bytes = e->workspace.bytes;
    return a;
}

moba_backward_args th_backward_args(const th_exec *e) {
    moba_backward_args a = MOBA_BACKWARD_ARGS_INIT;
    a.in = th_inputs(e);
    a.o = with_buffer(e->q_view, &e->o);
    a.lse = e->lse.data;
    a.dout = with_buffer(e->q_view, &e->dout);
    a.saved = e->saved.data;
    a.saved_bytes = e->saved.bytes;
    a.dq = with_buffer(e->q_view, &e->dq);
    a.dk = with_buffer(e->k_view, &e->dk);
    a.dv = with_buffer(e->k_view, &e->dv);
    a.dkconv_weight = e->dw.data;
    a.workspace = e->workspace.data;
    a.workspace_bytes = e->workspace.bytes;
    return a;
}

/* Canaries in the workspace; another byte each time, for nothing may depend on it. */
static void fill_workspace(th_exec *e) {
    memset(e->workspace.image + GUARD, e->workspace_fill, e->workspace.bytes);
    upload(e, &e->workspace);
    e->workspace_fill = (uint8_t)(e->workspace_fill * 5 + 3);
}

static void check_after(const th_exec *e) {
    check_input(e, &e->q, "q");
    check_input(e, &e->k, "k");
    check_input(e, &e->v, "v");
    check_input(e, &e->w, "kconv_weight");
    check_input(e, &e->cu_q, "cu_seqlens_q");
    check_input(e, &e->cu_k, "cu_seqlens_k");
    check_input(e, &e->dout, "dout");
    unsigned char *copy = download(e, &e->workspace);
    memcpy(copy + GUARD, e->workspace.image + GUARD, e->workspace.bytes);
    check_untouched(e, &e->workspace, copy, "workspace");
}

static bool run_forward(th_exec *e, unsigned what, const int32_t *prescribed, th_result *r) {
    const th_case *c = e->c;
    moba_stream stream = {NULL};
    bool ok;
    upload(e, &e->o);
    upload(e, &e->lse);
    if (e->saved.image != NULL) upload(e, &e->saved);
    if (e->selection.image != NULL) {
        memset(e->selection.image, INDEX_CANARY, e->selection.bytes + 2 * GUARD);
        if (prescribed != NULL) memcpy(e->selection.image + GUARD, prescribed, e->selection.bytes);
        upload(e, &e->selection);
    }
    fill_workspace(e);
    if (what & TH_ROUTE) {
        moba_route_args a = th_route_args(e);
        ok = th_ok(e->session, c, moba_route(e->plan, stream, &a), "moba_route");
    } else if (what & TH_ATTEND) {
        moba_attend_args a = th_attend_args(e);
        ok = th_ok(e->session, c, moba_attend(e->plan, stream, &a), "moba_attend");
    } else {
        moba_forward_args a = th_forward_args(e);
        ok = th_ok(e->session, c, moba_forward(e->plan, stream, &a), "moba_forward");
    }
    if (!ok || !th_ok(e->session, c, moba_stream_synchronize(e->context, stream), "moba_stream_synchronize"))
        return false;
    check_after(e);
    if (what & TH_ATTEND && e->selection.image != NULL) check_input(e, &e->selection, "prescribed selection");
    if (e->selection.image != NULL) {
        r->selection = th_allocate((size_t)th_selection_elements(c), sizeof *r->selection);
        take_payload(e, &e->selection, "selection", r->selection, e->selection.bytes);
    }
    if (what & TH_ROUTE) return true;
    r->o = get_tensor(e, &e->o, &e->q_view, c->shape.total_q, c->shape.n_q_heads, "o");
    r->lse = get_floats(e, &e->lse, th_lse_elements(c), "lse");
    if (e->saved.image != NULL) {
        r->saved_bytes = e->saved.bytes;
        r->saved = th_allocate(r->saved_bytes, 1);
        take_payload(e, &e->saved, "saved", r->saved, r->saved_bytes);
    }
    return true;
}

static bool run_backward(th_exec *e, th_result *r) {
    const th_case *c = e->c;
    const ref_shape *s = &c->shape;
    moba_stream stream = {NULL};
    moba_backward_args a = th_backward_args(e);
    upload(e, &e->dq);
    upload(e, &e->dk);
    upload(e, &e->dv);
    if (e->dw.image != NULL) upload(e, &e->dw);
    fill_workspace(e);
    if (!th_ok(e->session, c, moba_backward(e->plan, stream, &a), "moba_backward")) return false;
    if (!th_ok(e->session, c, moba_stream_synchronize(e->context, stream), "moba_stream_synchronize")) return false;
    check_after(e);
    if (e->saved.image != NULL) {
        unsigned char *copy = th_allocate(e->saved.bytes, 1);
        take_payload(e, &e->saved, "saved", copy, e->saved.bytes);
        if (memcmp(copy, r->saved, r->saved_bytes) != 0) th_fail(e->session, c, "the backward changed saved");
        free(copy);
    }
    r->dq = get_tensor(e, &e->dq, &e->q_view, s->total_q, s->n_q_heads, "dq");
    r->dk = get_tensor(e, &e->dk, &e->k_view, s->total_k, s->n_kv_heads, "dk");
    r->dv = get_tensor(e, &e->dv, &e->k_view, s->total_k, s->n_kv_heads, "dv");
    if (e->dw.image != NULL) r->dw = get_floats(e, &e->dw, th_w_elements(c), "dkconv_weight");
    return true;
}

bool th_run(th_exec *e, unsigned what, const int32_t *prescribed, th_result *r) {
    memset(r, 0, sizeof *r);
    if (!run_forward(e, what, prescribed, r)) return false;
    return !(what & TH_BACKWARD) || run_backward(e, r);
}

bool th_once(const th_session *session, const th_case *c, const moba_problem *problem, unsigned what,
             const int32_t *prescribed, th_result *r) {
    th_exec *e = th_open(session, c, problem);
    memset(r, 0, sizeof *r);
    if (e == NULL) return false;
    bool ok = th_run(e, what, prescribed, r);
    th_close(e);
    return ok;
}

void th_result_free(th_result *r) {
    void *owned[] = {r->o, r->lse, r->dq, r->dk, r->dv, r->dw, r->selection, r->saved};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    memset(r, 0, sizeof *r);
}
