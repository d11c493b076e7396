/* Kernels for sparse networks.
 *
 * Layout. A plane is one channel of one tensor: `height` rows of `width` floats, each followed by `stride - width`
 * zeros, and, if something reads beyond the edge, by rows of zeros up to the next plane, `plane` floats on. Zeros at a
 * row's end are also those before the next row, zeros below a plane those above the next one, and `lead` zeros lie
 * before the first plane. So a tap of a convolution is one constant offset for all pixels of a plane, and any run of
 * pixels is a run of floats. Floats between rows, and up to the next multiple of 16, are always zeros.
 *
 * A convolution with a stride, or with an output of another size than its input, reads phases of its input: planes of
 * the output's size, made of every stride-th pixel of every stride-th row.
 *
 * Tiles. net_rows computes up to NET_TILE vectors of one output plane at a time: they stay in registers while the
 * weights of that plane are gone through, one offset and one value each. A vector has NET_LANES floats: 16 with
 * AVX-512, 8 with AVX, otherwise 4 (SSE2, NEON). Without GNU vectors, the same tile of the output is added to in memory,
 * which compilers turn into vectors by themselves. net_blocks, for layers that are not sparse, computes four planes at a
 * time, so that each float that is read is used four times.
 *
 * Offsets are in floats from the arena's beginning. A table is a run of 32-bit words; each function says what is in it.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the weights are little-endian"
#endif

typedef union {
    int32_t i;
    float f;
    uint8_t bytes[4];
} net_word;

typedef struct {
    int32_t height, width, stride, plane, lead;
} net_shape;

enum { NET_NONE, NET_CLIP, NET_LEAKY, NET_SIGMOID, NET_SWISH, NET_HARD_SIGMOID, NET_HARD_SWISH };

typedef struct {
    int kind;
    float low, high; /* limits of NET_CLIP; the slope of NET_LEAKY */
} net_activation;

enum { NET_SUM, NET_PACKED, NET_MAXIMUM };

#define NET_TILE 8

#if defined(__GNUC__) && !defined(NET_PLAIN)
#define NET_VECTORS
#pragma GCC diagnostic ignored "-Wpsabi"
#if !defined(NET_LANES)
#if defined(__AVX512F__)
#define NET_LANES 16
#elif defined(__AVX__)
#define NET_LANES 8
#else
#define NET_LANES 4
#endif
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define NET_BLOCK 6 /* vectors of each of four planes: 24 of 32 registers */
#else
#define NET_BLOCK 3 /* 12 of 16 registers */
#endif
typedef float net_vector __attribute__((vector_size(4 * NET_LANES)));
typedef int32_t net_integers __attribute__((vector_size(4 * NET_LANES)));
typedef float net_loose __attribute__((vector_size(4 * NET_LANES), aligned(4), may_alias)); /* at any float */
#define NET_INLINE static inline __attribute__((always_inline))
#define NET_LOAD(p) (*(const net_loose *)(p))
#define NET_STORE(p, v) (*(net_loose *)(p) = (v))
#define NET_ALL(number) ((number) - (net_vector){0}) /* x - 0 is x, so there is nothing to compute; 0 + x is not */
#define NET_UNROLL _Pragma("GCC unroll 8")
#else
#define NET_LANES 8
#define NET_BLOCK 3
#define NET_INLINE static inline
#define NET_UNROLL
#endif

/* With OpenMP, loops of at least so many multiply-adds, or floats that are moved, are shared among threads: waking and
 * awaiting them takes some microseconds. */
#ifndef NET_WORTH_THREADS
#define NET_WORTH_THREADS 500000
#endif
#ifdef _OPENMP
#define NET_PRAGMA(text) _Pragma(#text)
#define NET_PARALLEL(work) NET_PRAGMA(omp parallel for schedule(static) if ((work) >= NET_WORTH_THREADS))
#else
#define NET_PARALLEL(work)
#endif

static inline int net_floor(int i, int step) { return i / step * step; }
static inline int net_ceil(int i, int step) { return net_floor(i + step - 1, step); }

/* ---------------------------------------------------------------------------------------------------------------------
 * Activations
 * ------------------------------------------------------------------------------------------------------------------ */

static inline float net_activate_one(float x, net_activation a) {
    switch (a.kind) {
    case NET_CLIP: return x < a.low ? a.low : x > a.high ? a.high : x;
    case NET_LEAKY: return x > 0 ? x : a.low * x;
    case NET_SIGMOID: return 1 / (1 + expf(-x));
    case NET_SWISH: return x / (1 + expf(-x));
    case NET_HARD_SIGMOID:
    case NET_HARD_SWISH: {
        float gate = x / 6 + 0.5f;
        gate = gate < 0 ? 0 : gate > 1 ? 1 : gate;
        return a.kind == NET_HARD_SIGMOID ? gate : x * gate;
    }
    default: return x;
    }
}

#ifdef NET_VECTORS
NET_INLINE net_vector net_choose(net_integers where, net_vector one, net_vector other) {
    return (net_vector)((where & (net_integers)one) | (~where & (net_integers)other));
}

NET_INLINE net_vector net_clip(net_vector x, net_vector low, net_vector high) {
    x = net_choose(x < low, low, x);
    return net_choose(x > high, high, x);
}

/* exp(x) = 2^k exp(r), |r| <= ln(2) / 2, by seven terms of the series. */
NET_INLINE net_vector net_exp(net_vector x) {
    x = net_clip(x, NET_ALL(-87.0f), NET_ALL(88.0f));
    net_vector k = x * 1.44269504f;
    net_integers whole = __builtin_convertvector(k + net_choose(k < 0.0f, NET_ALL(-0.5f), NET_ALL(0.5f)), net_integers);
    k = __builtin_convertvector(whole, net_vector);
    net_vector r = x - k * 0.693359375f + k * 2.12194440e-4f;
    net_vector p = r * (1 / 5040.0f) + 1 / 720.0f;
    p = p * r + 1 / 120.0f;
    p = p * r + 1 / 24.0f;
    p = p * r + 1 / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (net_vector)((whole + 127) << 23);
}

static inline void net_activate(float *x, int count, net_activation a) {
    for (int i = 0; i < count; i += NET_LANES) {
        net_vector v = NET_LOAD(x + i), gate;
        if (a.kind == NET_CLIP)
            v = net_clip(v, NET_ALL(a.low), NET_ALL(a.high));
        else if (a.kind == NET_LEAKY)
            v = net_choose(v > 0.0f, v, v * a.low);
        else {
            if (a.kind == NET_SIGMOID || a.kind == NET_SWISH)
                gate = 1.0f / (1.0f + net_exp(-v));
            else
                gate = net_clip(v / 6.0f + 0.5f, NET_ALL(0.0f), NET_ALL(1.0f));
            v = a.kind == NET_SIGMOID || a.kind == NET_HARD_SIGMOID ? gate : v * gate;
        }
        NET_STORE(x + i, v);
    }
}
#else
static inline void net_activate(float *x, int count, net_activation a) {
    for (int i = 0; i < count; i++) x[i] = net_activate_one(x[i], a);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
 * Weighted sums of shifted planes: convolutions, with batch norm, bias, additions and activation
 * ------------------------------------------------------------------------------------------------------------------ */

#if NET_BITS == 8
#define NET_RECORD 3
NET_INLINE float net_decode(const uint8_t *record) { return (int8_t)record[2]; }
#elif NET_BITS == 16
#define NET_RECORD 4
NET_INLINE float net_decode(const uint8_t *record) { /* IEEE 754 binary16, finite */
    uint32_t half = record[2] | (uint32_t)record[3] << 8;
    union {
        uint32_t i;
        float f;
    } value;
    value.i = (half & 0x7fff) << 13;
    value.f *= 0x1p112f;
    value.i |= (half & 0x8000) << 16;
    return value.f;
}
#endif

/* Zeros in a tile, `count` floats from float `start` of a plane on, wherever there is no pixel. */
NET_INLINE void net_clear(float *tile, int start, int count, const net_shape *s) {
    int end = s->height * s->stride - start;
    if (s->stride > s->width)
        for (int i = net_floor(start, s->stride) + s->width - start; i < count; i += s->stride)
            for (int k = i < 0 ? 0 : i; k < i + s->stride - s->width && k < count; k++) tile[k] = 0;
    if (end <= count)
        for (int k = end; k < net_ceil(end + start, 16) - start; k++) tile[k] = 0;
}

/* One tile of `vectors` vectors of the output planes first..last-1. The table of `rows` planes:
 *   first entry of each plane, and the end        int32 [rows + 1]
 *   bias                                          float [rows]
 *   with packed values: scale                     float [rows]
 *                       offset of the first       int32 [rows]
 *                       first record, and the end int32 [rows + 1]
 *   entries: offset, weight                       int32, float
 *   records, NET_RECORD bytes each: distance from the offset before, 16 bits, and a value of NET_BITS bits
 * A plane is bias + scale * (sum over its records) + (sum over its entries). */
NET_INLINE void net_rows_tile(const int vectors, const int mode, float *out, const float *in, const net_word *table,
                              int rows, int first, int last, const net_shape *s, int start, net_activation a) {
    const net_word *bias = table + rows + 1, *packed = bias + rows;
    const net_word *entries = mode == NET_PACKED ? packed + 3 * rows + 1 : packed;
    for (int row = first; row < last; row++) {
        float *tile = out + (size_t)row * s->plane;
        const net_word *entry = entries + 2 * (size_t)table[row].i, *end = entries + 2 * (size_t)table[row + 1].i;
#ifdef NET_VECTORS
        net_vector sum[NET_TILE];
        NET_UNROLL for (int k = 0; k < vectors; k++) sum[k] = NET_ALL(mode == NET_MAXIMUM ? -FLT_MAX : 0.0f);
#ifdef NET_BITS
        if (mode == NET_PACKED) {
            const uint8_t *record = (entries + 2 * (size_t)table[rows].i)->bytes + NET_RECORD * (size_t)packed[2 * rows + row].i;
            const uint8_t *stop = record + NET_RECORD * (size_t)(packed[2 * rows + row + 1].i - packed[2 * rows + row].i);
            const float *x = in + packed[rows + row].i;
            for (; record < stop; record += NET_RECORD) {
                x += record[0] | record[1] << 8;
                net_vector weight = NET_ALL(net_decode(record));
                NET_UNROLL for (int k = 0; k < vectors; k++) sum[k] += weight * NET_LOAD(x + k * NET_LANES);
            }
            net_vector scale = NET_ALL(packed[row].f);
            NET_UNROLL for (int k = 0; k < vectors; k++) sum[k] *= scale;
        }
#endif
        for (; entry < end; entry += 2) {
            const float *x = in + entry[0].i;
            net_vector weight = NET_ALL(entry[1].f);
            NET_UNROLL for (int k = 0; k < vectors; k++) {
                net_vector v = NET_LOAD(x + k * NET_LANES);
                sum[k] = mode == NET_MAXIMUM ? net_choose(v > sum[k], v, sum[k]) : sum[k] + weight * v;
            }
        }
        net_vector b = NET_ALL(bias[row].f), low = NET_ALL(a.low), high = NET_ALL(a.high);
        if (a.kind == NET_CLIP) {
            NET_UNROLL for (int k = 0; k < vectors; k++)
                NET_STORE(tile + k * NET_LANES, net_clip(sum[k] + b, low, high));
        } else {
            NET_UNROLL for (int k = 0; k < vectors; k++) NET_STORE(tile + k * NET_LANES, sum[k] + b);
            if (a.kind != NET_NONE) net_activate(tile, vectors * NET_LANES, a);
        }
#else
        for (int k = 0; k < vectors * NET_LANES; k++) tile[k] = mode == NET_MAXIMUM ? -FLT_MAX : 0;
#ifdef NET_BITS
        if (mode == NET_PACKED) {
            const uint8_t *record = (entries + 2 * (size_t)table[rows].i)->bytes + NET_RECORD * (size_t)packed[2 * rows + row].i;
            const uint8_t *stop = record + NET_RECORD * (size_t)(packed[2 * rows + row + 1].i - packed[2 * rows + row].i);
            const float *x = in + packed[rows + row].i;
            for (; record < stop; record += NET_RECORD) {
                x += record[0] | record[1] << 8;
                float weight = net_decode(record) * packed[row].f;
                for (int k = 0; k < vectors * NET_LANES; k++) tile[k] += weight * x[k];
            }
        }
#endif
        for (; entry < end; entry += 2) {
            const float *x = in + entry[0].i;
            float weight = entry[1].f;
            if (mode == NET_MAXIMUM)
                for (int k = 0; k < vectors * NET_LANES; k++) tile[k] = x[k] > tile[k] ? x[k] : tile[k];
            else
                for (int k = 0; k < vectors * NET_LANES; k++) tile[k] += weight * x[k];
        }
        for (int k = 0; k < vectors * NET_LANES; k++) tile[k] += bias[row].f;
        if (a.kind != NET_NONE) net_activate(tile, vectors * NET_LANES, a);
#endif
        net_clear(tile, start, vectors * NET_LANES, s);
    }
}

/* Zeros before the first plane and between planes. */
static inline void net_gaps(float *out, int planes, const net_shape *s) {
    int end = net_ceil(s->height * s->stride, 16);
    memset(out - s->lead, 0, sizeof(float) * s->lead);
    for (int i = 0; i < planes; i++) memset(out + (size_t)i * s->plane + end, 0, sizeof(float) * (s->plane - end));
}

NET_INLINE void net_rows_any(const int mode, float *arena, float *out, const net_word *table, int rows,
                             const net_shape *s, int gaps, net_activation a) {
    int vectors = net_ceil(s->height * s->stride, NET_LANES) / NET_LANES;
    int tiles = net_ceil(vectors, NET_TILE) / NET_TILE, parts = 1;
#ifdef _OPENMP
    parts = tiles < 16 ? net_ceil(16, tiles) / tiles : 1;
    parts = parts < rows ? parts : rows;
#endif
    NET_PARALLEL((double)table[rows].i * vectors * NET_LANES)
    for (int item = 0; item < tiles * parts; item++) {
        int tile = item / parts, part = item % parts;
        int from = (int)((int64_t)vectors * tile / tiles), count = (int)((int64_t)vectors * (tile + 1) / tiles) - from;
        int first = (int)((int64_t)rows * part / parts), last = (int)((int64_t)rows * (part + 1) / parts);
        int start = from * NET_LANES;
#define NET_CASE(n) \
    case n: net_rows_tile(n, mode, out + start, arena + start, table, rows, first, last, s, start, a); break;
        switch (count) {
            NET_CASE(1) NET_CASE(2) NET_CASE(3) NET_CASE(4) NET_CASE(5) NET_CASE(6) NET_CASE(7) NET_CASE(8)
        }
#undef NET_CASE
    }
    if (gaps) net_gaps(out, rows, s);
}

static inline void net_rows(float *arena, float *out, const net_word *table, int rows, const net_shape *s, int gaps,
                     net_activation a) {
    net_rows_any(NET_SUM, arena, out, table, rows, s, gaps, a);
}

#ifdef NET_BITS
static inline void net_packed(float *arena, float *out, const net_word *table, int rows, const net_shape *s, int gaps,
                       net_activation a) {
    net_rows_any(NET_PACKED, arena, out, table, rows, s, gaps, a);
}
#endif

/* The largest of shifted planes, as net_rows with weights that are not looked at: a max pooling. */
static inline void net_largest(float *arena, float *out, const net_word *table, int rows, const net_shape *s, int gaps,
                        net_activation a) {
    net_rows_any(NET_MAXIMUM, arena, out, table, rows, s, gaps, a);
}

/* `vectors` vectors of up to four planes that are sums over the same offsets. */
NET_INLINE void net_block_tile(const int vectors, float *out, const float *in, const net_word *entry,
                               const net_word *end, const net_word *bias, int planes, const net_shape *s, int start,
                               net_activation a) {
#ifdef NET_VECTORS
    net_vector sum[4][NET_BLOCK];
    NET_UNROLL for (int j = 0; j < 4; j++)
        NET_UNROLL for (int k = 0; k < vectors; k++) sum[j][k] = NET_ALL(bias[j].f);
    for (; entry < end; entry += 5) {
        const float *x = in + entry[0].i;
        net_vector v[NET_BLOCK];
        NET_UNROLL for (int k = 0; k < vectors; k++) v[k] = NET_LOAD(x + k * NET_LANES);
        NET_UNROLL for (int j = 0; j < 4; j++) {
            net_vector weight = NET_ALL(entry[1 + j].f);
            NET_UNROLL for (int k = 0; k < vectors; k++) sum[j][k] += weight * v[k];
        }
    }
    NET_UNROLL for (int j = 0; j < 4; j++) {
        float *tile = out + (size_t)j * s->plane;
        if (j >= planes) break;
        NET_UNROLL for (int k = 0; k < vectors; k++) NET_STORE(tile + k * NET_LANES, sum[j][k]);
    }
#else
    for (int j = 0; j < planes; j++) {
        float *tile = out + (size_t)j * s->plane;
        for (int k = 0; k < vectors * NET_LANES; k++) tile[k] = bias[j].f;
        for (const net_word *e = entry; e < end; e += 5) {
            const float *x = in + e[0].i;
            float weight = e[1 + j].f;
            for (int k = 0; k < vectors * NET_LANES; k++) tile[k] += weight * x[k];
        }
    }
#endif
    for (int j = 0; j < planes; j++) {
        float *tile = out + (size_t)j * s->plane;
        if (a.kind != NET_NONE) net_activate(tile, vectors * NET_LANES, a);
        net_clear(tile, start, vectors * NET_LANES, s);
    }
}

/* As net_rows, for rows that are not sparse. The table, of groups of four planes:
 *   first entry of each group, and the end   int32 [groups + 1]
 *   bias                                     float [4 * groups]
 *   entries: offset, four weights            int32, float [4] */
static inline void net_blocks(float *arena, float *out, const net_word *table, int rows, const net_shape *s, int gaps,
                       net_activation a) {
    int groups = net_ceil(rows, 4) / 4, vectors = net_ceil(s->height * s->stride, NET_LANES) / NET_LANES;
    int tiles = net_ceil(vectors, NET_BLOCK) / NET_BLOCK;
    const net_word *bias = table + groups + 1, *entries = bias + 4 * (size_t)groups;
    NET_PARALLEL(4.0 * table[groups].i * vectors * NET_LANES)
    for (int item = 0; item < groups * tiles; item++) {
        int group = item / tiles, tile = item % tiles; /* a group's weights stay in the cache for all tiles */
        int from = (int)((int64_t)vectors * tile / tiles), count = (int)((int64_t)vectors * (tile + 1) / tiles) - from;
        int start = from * NET_LANES, planes = rows - 4 * group < 4 ? rows - 4 * group : 4;
        float *to = out + start + 4 * (size_t)group * s->plane;
        const net_word *entry = entries + 5 * (size_t)table[group].i, *end = entries + 5 * (size_t)table[group + 1].i;
#define NET_CASE(n) \
    case n: net_block_tile(n, to, arena + start, entry, end, bias + 4 * group, planes, s, start, a); break;
        switch (count) {
            NET_CASE(1) NET_CASE(2) NET_CASE(3)
#if NET_BLOCK == 6
            NET_CASE(4) NET_CASE(5) NET_CASE(6)
#endif
        }
#undef NET_CASE
    }
    if (gaps) net_gaps(out, rows, s);
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Single numbers: dense layers, and convolutions that yield one pixel
 * ------------------------------------------------------------------------------------------------------------------ */

/* As net_rows, of planes that are single numbers; the same table. */
static inline void net_dots(int mode, const float *arena, float *out, const net_word *table, int rows, net_activation a) {
    const net_word *bias = table + rows + 1, *packed = bias + rows;
    const net_word *entries = mode == NET_PACKED ? packed + 3 * (size_t)rows + 1 : packed;
    NET_PARALLEL(table[rows].i)
    for (int row = 0; row < rows; row++) {
        const net_word *entry = entries + 2 * (size_t)table[row].i, *end = entries + 2 * (size_t)table[row + 1].i;
        float sum[4] = {0, 0, 0, 0};
        if (mode == NET_MAXIMUM) {
            sum[0] = -FLT_MAX;
            for (; entry < end; entry += 2)
                sum[0] = arena[entry[0].i] > sum[0] ? arena[entry[0].i] : sum[0];
        }
#ifdef NET_BITS
        if (mode == NET_PACKED) {
            const uint8_t *record = (entries + 2 * (size_t)table[rows].i)->bytes + NET_RECORD * (size_t)packed[2 * rows + row].i;
            const uint8_t *stop = record + NET_RECORD * (size_t)(packed[2 * rows + row + 1].i - packed[2 * rows + row].i);
            const float *x = arena + packed[rows + row].i;
            for (int k = 0; record < stop; record += NET_RECORD, k++) {
                x += record[0] | record[1] << 8;
                sum[k % 4] += net_decode(record) * *x;
            }
            for (int k = 0; k < 4; k++) sum[k] *= packed[row].f;
        }
#endif
        for (; end - entry >= 8; entry += 8)
            for (int k = 0; k < 4; k++) sum[k] += entry[2 * k + 1].f * arena[entry[2 * k].i];
        for (; entry < end; entry += 2) sum[0] += entry[1].f * arena[entry[0].i];
        out[row] = net_activate_one(bias[row].f + ((sum[0] + sum[1]) + (sum[2] + sum[3])), a);
    }
}

/* A dense layer that is not sparse, of `columns` numbers one behind the other. The table: bias float [rows], weight
 * float [rows, columns]. */
static inline void net_matrix(const float *in, float *out, const net_word *table, int rows, int columns, net_activation a) {
    NET_PARALLEL((double)rows * columns)
    for (int row = 0; row < rows; row++) {
        const net_word *weight = table + rows + (size_t)row * columns;
        float sum[16] = {0}, total = 0;
        int i = 0;
#ifdef NET_VECTORS
        net_vector sums[4] = {NET_ALL(0.0f), NET_ALL(0.0f), NET_ALL(0.0f), NET_ALL(0.0f)};
        for (; i + 4 * NET_LANES <= columns; i += 4 * NET_LANES)
            NET_UNROLL for (int k = 0; k < 4; k++)
                sums[k] += NET_LOAD(&weight[i + k * NET_LANES].f) * NET_LOAD(in + i + k * NET_LANES);
        NET_STORE(sum, (sums[0] + sums[1]) + (sums[2] + sums[3]));
#endif
        for (; i + 16 <= columns; i += 16)
            for (int k = 0; k < 16; k++) sum[k] += weight[i + k].f * in[i + k];
        for (; i < columns; i++) sum[i % 16] += weight[i].f * in[i];
        for (int k = 0; k < 16; k++) total += sum[k];
        out[row] = net_activate_one(table[row].f + total, a);
    }
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Plane by plane. Tables hold the offset of each plane that is read.
 * ------------------------------------------------------------------------------------------------------------------ */

/* Every step-th pixel of rows of `in_stride` floats; `rows` and `columns` of them, surrounded by `fill`. */
static inline void net_phase(const float *in, float *out, const net_word *table, int planes, const net_shape *s, int in_stride,
                      int step_down, int step_right, int rows, int columns, float fill) {
    for (int i = 0; i < s->lead; i++) out[i - s->lead] = fill;
    NET_PARALLEL((double)planes * s->plane)
    for (int p = 0; p < planes; p++) {
        const float *from = in + table[p].i;
        float *to = out + (size_t)p * s->plane;
        int end = rows * s->stride;
        for (int y = 0; y < rows; y++) {
            const float *line = from + (size_t)y * step_down * in_stride;
            float *row = to + (size_t)y * s->stride;
            if (step_right == 1)
                memcpy(row, line, sizeof(float) * columns);
            else if (step_right == 2)
                for (int x = 0; x < columns; x++) row[x] = line[2 * x];
            else
                for (int x = 0; x < columns; x++) row[x] = line[step_right * x];
            for (int x = columns; x < s->stride; x++) row[x] = fill;
        }
        for (int i = end; i < s->plane; i++) to[i] = fill;
    }
}

/* The mean of each plane of shape `s`: what lies between its pixels is zero. */
static inline void net_mean(const float *arena, float *out, const net_word *table, int planes, const net_shape *s) {
    NET_PARALLEL((double)planes * s->height * s->stride)
    for (int p = 0; p < planes; p++) {
        const float *x = arena + table[p].i;
        float sum[16] = {0}, total = 0;
        for (int i = 0; i < s->height * s->stride; i += 16)
            for (int k = 0; k < 16; k++) sum[k] += x[i + k];
        for (int k = 0; k < 16; k++) total += sum[k];
        out[p] = total / ((float)s->height * s->width);
    }
}

/* The mean over the part of each window that lies within planes of shape `t`. */
static inline void net_average(const float *arena, float *out, const net_word *table, int planes, const net_shape *s,
                        const net_shape *t, int high, int wide, int step_down, int step_right, int above, int left,
                        int gaps) {
    NET_PARALLEL((double)planes * s->plane * high * wide)
    for (int p = 0; p < planes; p++) {
        float *to = out + (size_t)p * s->plane;
        memset(to, 0, sizeof(float) * (s->height * s->width == 1 ? 1 : net_ceil(s->height * s->stride, 16)));
        for (int y = 0; y < s->height; y++)
            for (int x = 0; x < s->width; x++) {
                int top = y * step_down - above, first = x * step_right - left, bottom = top + high, last = first + wide;
                float sum = 0;
                top = top < 0 ? 0 : top, bottom = bottom > t->height ? t->height : bottom;
                first = first < 0 ? 0 : first, last = last > t->width ? t->width : last;
                for (int v = top; v < bottom; v++)
                    for (int u = first; u < last; u++) sum += arena[table[p].i + v * t->stride + u];
                to[y * s->stride + x] = sum / ((float)(bottom - top) * (last - first));
            }
    }
    if (gaps) net_gaps(out, planes, s);
}

/* Products of planes with planes, or with numbers. The table: int32 [2, planes]. */
static inline void net_gate(const float *arena, float *out, const net_word *table, int planes, const net_shape *s, int numbers,
                     int gaps) {
    int count = s->plane == 1 ? 1 : net_ceil(s->height * s->stride, 16);
    NET_PARALLEL((double)planes * s->plane)
    for (int p = 0; p < planes; p++) {
        const float *x = arena + table[p].i, *gate = arena + table[planes + p].i;
        float *to = out + (size_t)p * s->plane, number = *gate;
        if (numbers)
            for (int i = 0; i < count; i++) to[i] = x[i] * number;
        else
            for (int i = 0; i < count; i++) to[i] = x[i] * gate[i];
    }
    if (gaps) net_gaps(out, planes, s);
}

/* The pixels of planes one behind the other. */
static inline void net_flat(const float *arena, float *out, const net_word *table, int planes, const net_shape *s) {
    for (int p = 0; p < planes; p++)
        for (int y = 0; y < s->height; y++, out += s->width)
            memcpy(out, arena + table[p].i + (size_t)y * s->stride, sizeof(float) * s->width);
}

static inline void net_softmax(const float *arena, float *out, const net_word *table, int count) {
    float largest = -FLT_MAX, sum = 0;
    for (int i = 0; i < count; i++) largest = arena[table[i].i] > largest ? arena[table[i].i] : largest;
    for (int i = 0; i < count; i++) sum += out[i] = expf(arena[table[i].i] - largest);
    for (int i = 0; i < count; i++) out[i] /= sum;
}
