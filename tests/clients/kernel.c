/* An int8 backend in C that speaks refquant-1: TensorFlow Lite's reference semantics (profile tflite-double@1).

   Letters: q codes, s scales, z zero points, acc accumulators, m and shift a fixed-point factor m 2^(shift - 31).

   cc -std=c99 -O2 -ffp-contract=off kernel.c -lm -o kernel && refquant verify --command ./kernel --profile tflite-double@1
   Wrong on purpose with -DSHIFT_TIES_UP, -DPADDING_WITH_CODE_0, -DTIES_TO_EVEN, each a deviation by its name. */
#include <math.h>
#include <stdint.h>
#include "json.h"

/* ---- arrays ---- */

enum { RANK = 8 };
typedef struct { int rank; long shape[RANK], size; double *data; const char *dtype; } Array;

static Array make(int rank, const long *shape, const char *dtype) {
    Array a = {rank, {0}, 1, NULL, dtype};
    for (int i = 0; i < rank; i++) a.size *= a.shape[i] = shape[i];
    a.data = calloc((size_t)a.size + 1, sizeof *a.data);
    if (!a.data) refuse("out of memory");
    return a;
}

/* An input by name; a double holds every number of every type that is asked for here. */
static Array input(const Json *request, const char *name) {
    const Json *json = get(get(request, "inputs"), name), *shape = get(json, "shape"), *data = get(json, "data");
    if (!shape || !data || shape->count > RANK) refuse(name);
    long sizes[RANK];
    int rank = 0;
    for (const Json *n = shape->first; n; n = n->next) sizes[rank++] = (long)n->number;
    Array a = make(rank, sizes, get(json, "dtype")->text);
    const Json *v = data->first;
    if (data->count != a.size && data->count != 1) refuse("data of another count");
    for (long i = 0; i < a.size; i++) {
        a.data[i] = v->kind == TEXT ? strtod(v->text, NULL) : (double)v->number;
        if (data->count > 1) v = v->next;
    }
    return a;
}

static void write_text(const char *text) {
    putchar('"');
    for (; *text; text++) { if (*text == '"' || *text == '\\') putchar('\\'); putchar(*text); }
    putchar('"');
}

static void reply(const Json *request, const char *name, Array a) {
    int integers = strstr(a.dtype, "int") != NULL;
    printf("{\"id\": "); write_text(get(request, "id")->text);
    printf(", \"outputs\": {\"%s\": {\"dtype\": \"%s\", \"shape\": [", name, a.dtype);
    for (int i = 0; i < a.rank; i++) printf(i ? ", %ld" : "%ld", a.shape[i]);
    printf("], \"data\": [");
    for (long i = 0; i < a.size; i++) {
        if (i) printf(", ");
        if (integers) printf("%.0f", a.data[i]);
        else printf(isnan(a.data[i]) ? "\"nan\"" : "\"%a\"", a.data[i]);
    }
    printf("]}}}\n");
}

static void decline(const Json *request, const char *why) {
    printf("{\"id\": "); write_text(get(request, "id")->text);
    printf(", \"declined\": \"%s\"}\n", why);
}

/* ---- quantize ---- */

static double clamp(double q, const Json *spec) { /* into the codes of so many bits */
    int bits = (int)get(spec, "bits")->number, with_sign = (int)get(spec, "signed")->number;
    double low = (with_sign ? -ldexp(1, bits - 1) : 0) + (double)get(spec, "narrow")->number;
    return fmin(fmax(q, low), ldexp(1, bits - with_sign) - 1);
}

/* The parameter that serves element i of x: one for all, one a channel, or one a run along an axis. */
static double serving(Array parameter, Array x, long i, const Json *grain) {
    if (is(grain, "kind", "PerTensor") || parameter.rank == 0) return parameter.data[0];
    long axis = (long)get(grain, "axis")->number, inner = 1;
    if (axis < 0) axis += x.rank;
    for (int d = (int)axis + 1; d < x.rank; d++) inner *= x.shape[d];
    long along = i / inner % x.shape[axis];
    if (is(grain, "kind", "PerChannel")) return parameter.data[along];
    return parameter.data[(i / inner / x.shape[axis] * parameter.shape[axis] + along / get(grain, "size")->number) * inner + i % inner];
}

static double quantize(double x, double s, double z, const Json *spec) {
    float q = (float)x / (float)s;
#ifdef TIES_TO_EVEN
    return clamp(rintf(q) + z, spec);
#else
    return clamp(roundf(q) + z, spec);
#endif
}

static void quantize_all(const Json *request, int fake) {
    Array x = input(request, "x"), s = input(request, "scale"), z = input(request, "zero_point");
    const Json *spec = get(request, "spec"), *grain = get(spec, "granularity");
    Array y = make(x.rank, x.shape, fake ? x.dtype : "int32");
    for (long i = 0; i < x.size; i++) {
        double scale = serving(s, x, i, grain), zero = serving(z, x, i, grain);
        double q = quantize(x.data[i], scale, zero, spec), real = (q - zero) * scale;
        y.data[i] = !fake ? q : strcmp(x.dtype, "float64") ? (float)real : real;
    }
    reply(request, fake ? "y" : "codes", y);
    free(x.data); free(s.data); free(z.data); free(y.data);
}

/* ---- fixed point ---- */

typedef struct { int32_t m; int shift; int one; } Factor;

static Factor fixed(double factor) {
    Factor f = {0, 0, factor == 1};
    double m = floor(frexp(factor, &f.shift) * 2147483648.0 + 0.5);
    if (m == 2147483648.0) { m /= 2; f.shift++; }
    f.m = (int32_t)m;
    return f;
}

static int64_t high_product(int64_t a, int64_t b) { /* a b / 2^31, ties up */
    int64_t p = a * b;
    return (p + (p >= 0 ? 1 << 30 : 1 - (1 << 30))) / ((int64_t)1 << 31); /* toward zero */
}

static int64_t rounding_shift(int64_t x, int e) { /* x / 2^e, ties away from zero */
    int64_t half = e ? (int64_t)1 << (e - 1) : 0;
#ifdef SHIFT_TIES_UP
    return (x + half) >> e;
#else
    return x < 0 ? -((-x + half) >> e) : (x + half) >> e;
#endif
}

static int64_t times(int64_t x, Factor f) {
    int left = f.shift > 0 ? f.shift : 0;
    return rounding_shift(high_product(x * ((int64_t)1 << left), f.m), left - f.shift);
}

static double requantize(int32_t acc, Factor f, double z, const Json *spec) {
    return clamp((double)(f.one ? acc : times(acc, f)) + z, spec);
}

static void requantize_all(const Json *request) {
    Array acc = input(request, "acc"), z = input(request, "zero_point"), f;
    if (get(get(request, "inputs"), "multiplier")) f = input(request, "multiplier");
    else {
        Array a = input(request, "input_scale"), w = input(request, "weight_scale"), y = input(request, "output_scale");
        f = make(w.rank, w.shape, "float64");
        for (long i = 0; i < f.size; i++) f.data[i] = a.data[0] * w.data[i] / y.data[0];
        free(a.data); free(w.data); free(y.data);
    }
    const Json *spec = get(request, "spec"), *grain = get(spec, "granularity");
    Array q = make(acc.rank, acc.shape, "int32");
    for (long i = 0; i < q.size; i++)
        q.data[i] = requantize((int32_t)acc.data[i], fixed(serving(f, acc, i, grain)), serving(z, acc, i, grain), spec);
    reply(request, "codes", q);
    free(acc.data); free(z.data); free(f.data); free(q.data);
}

/* ---- layers ---- */

static double of(Array parameter, long channel) { return parameter.data[parameter.size > 1 ? channel : 0]; }

static Factor layer_factor(const Json *request, const char *x, const char *w, long channel) {
    Array s_x = input(request, x), s_w = input(request, w), s_y = input(request, "y_scale");
    Factor f = fixed(s_x.data[0] * of(s_w, channel) / s_y.data[0]);
    free(s_x.data); free(s_w.data); free(s_y.data);
    return f;
}

static int32_t wrap(int64_t acc) { return (int32_t)(uint32_t)acc; }

static void matmul(const Json *request) {
    Array a = input(request, "a"), b = input(request, "b"), z_y = input(request, "y_zero_point");
    Array z_a = input(request, "a_zero_point"), z_b = input(request, "b_zero_point");
    long N = a.shape[0], K = a.shape[1], M = b.shape[1], shape[] = {N, M};
    Array y = make(2, shape, "int32");
    for (long j = 0; j < M; j++) {
        Factor f = layer_factor(request, "a_scale", "b_scale", j);
        for (long i = 0; i < N; i++) {
            int64_t acc = 0;
            for (long k = 0; k < K; k++)
                acc += (int64_t)(a.data[i * K + k] - z_a.data[0]) * (int64_t)(b.data[k * M + j] - of(z_b, j));
            y.data[i * M + j] = requantize(wrap(acc), f, z_y.data[0], get(request, "spec"));
        }
    }
    reply(request, "codes", y);
    free(a.data); free(b.data); free(z_a.data); free(z_b.data); free(z_y.data); free(y.data);
}

/* Numbers of an option, or the default for all. */
static void option(const Json *request, const char *name, long *to, int count, long otherwise) {
    const Json *given = get(get(request, "options"), name), *n = given && given->kind == LIST ? given->first : given;
    for (int i = 0; i < count; i++) {
        to[i] = n ? (long)n->number : otherwise;
        if (n) n = n->next;
    }
}

static void conv(const Json *request) {
    Array x = input(request, "x"), w = input(request, "w"), bias = input(request, "bias");
    Array z_x = input(request, "x_zero_point"), z_w = input(request, "w_zero_point"), z_y = input(request, "y_zero_point");
    long stride[2], dilation[2], pad[4], groups; /* pad: top, left, bottom, right */
    option(request, "stride", stride, 2, 1);
    option(request, "dilation", dilation, 2, 1);
    option(request, "padding", pad, 4, 0);
    option(request, "groups", &groups, 1, 1);
    long C = x.shape[1], H = x.shape[2], W = x.shape[3], O = w.shape[0], I = w.shape[1], kh = w.shape[2], kw = w.shape[3];
    long shape[] = {x.shape[0], O, (H + pad[0] + pad[2] - dilation[0] * (kh - 1) - 1) / stride[0] + 1,
                    (W + pad[1] + pad[3] - dilation[1] * (kw - 1) - 1) / stride[1] + 1};
    Array y = make(4, shape, "int32");
    for (long e = 0; e < y.size; e++) {
        long c = e % shape[3], r = e / shape[3] % shape[2], o = e / shape[3] / shape[2] % O, n = e / shape[3] / shape[2] / O;
        int64_t acc = (int64_t)bias.data[o];
        for (long i = 0; i < I; i++)
            for (long u = 0; u < kh; u++)
                for (long v = 0; v < kw; v++) {
                    long h = r * stride[0] - pad[0] + u * dilation[0], g = c * stride[1] - pad[1] + v * dilation[1];
                    double q = z_x.data[0]; /* padding stands for the real 0 */
#ifdef PADDING_WITH_CODE_0
                    q = 0;
#endif
                    if (0 <= h && h < H && 0 <= g && g < W)
                        q = x.data[((n * C + o / (O / groups) * I + i) * H + h) * W + g];
                    acc += (int64_t)(q - z_x.data[0]) * (int64_t)(w.data[((o * I + i) * kh + u) * kw + v] - of(z_w, o));
                }
        y.data[e] = requantize(wrap(acc), layer_factor(request, "x_scale", "w_scale", o), z_y.data[0], get(request, "spec"));
    }
    reply(request, "codes", y);
    free(x.data); free(w.data); free(bias.data); free(z_x.data); free(z_w.data); free(z_y.data); free(y.data);
}

static void add(const Json *request) { /* both at twice the larger scale, with 20 bits to spare */
    Array a = input(request, "a"), b = input(request, "b"), y = make(a.rank, a.shape, "int32");
    static const char *names[] = {"a_scale", "b_scale", "y_scale", "a_zero_point", "b_zero_point", "y_zero_point"};
    double p[6];
    for (int i = 0; i < 6; i++) { Array one = input(request, names[i]); p[i] = one.data[0]; free(one.data); }
    double twice = 2 * fmax(p[0], p[1]);
    Factor f_a = fixed(p[0] / twice), f_b = fixed(p[1] / twice), f_y = fixed(twice / (1048576.0 * p[2]));
    for (long i = 0; i < y.size; i++) {
        int64_t da = (int64_t)(a.data[i] - p[3]) * 1048576, db = (int64_t)(b.data[i] - p[4]) * 1048576;
        y.data[i] = clamp((double)times(times(da, f_a) + times(db, f_b), f_y) + p[5], get(request, "spec"));
    }
    reply(request, "codes", y);
    free(a.data); free(b.data); free(y.data);
}

static void average_pool(const Json *request) {
    Array x = input(request, "x"), z = input(request, "zero_point");
    long kernel[2], stride[2], pad[4], padded;
    option(request, "kernel", kernel, 2, 1);
    option(request, "stride", stride, 2, 0);
    for (int i = 0; i < 2; i++) if (!stride[i]) stride[i] = kernel[i];
    option(request, "padding", pad, 4, 0);
    option(request, "count_include_pad", &padded, 1, 0);
    long H = x.shape[2], W = x.shape[3], shape[] = {x.shape[0], x.shape[1], (H + pad[0] + pad[2] - kernel[0]) / stride[0] + 1,
                                                    (W + pad[1] + pad[3] - kernel[1]) / stride[1] + 1};
    Array y = make(4, shape, "int32");
    for (long e = 0; e < y.size; e++) {
        long c = e % shape[3], r = e / shape[3] % shape[2], plane = e / shape[3] / shape[2], sum = 0, count = 0;
        for (long u = 0; u < kernel[0]; u++)
            for (long v = 0; v < kernel[1]; v++) {
                long h = r * stride[0] - pad[0] + u, g = c * stride[1] - pad[1] + v;
                int inside = 0 <= h && h < H && 0 <= g && g < W;
                if (inside) sum += (long)(x.data[(plane * H + h) * W + g] - z.data[0]);
                count += inside || padded;
            }
        long twice = 2 * labs(sum) + count, mean = twice / (2 * count); /* ties away from zero */
        y.data[e] = clamp((double)(sum < 0 ? -mean : mean) + z.data[0], get(request, "spec"));
    }
    reply(request, "codes", y);
    free(x.data); free(z.data); free(y.data);
}

/* ---- the talk ---- */

static void answer(const Json *request) {
    const Json *spec = get(request, "spec"), *integer = get(request, "integer");
    int scalar = is(request, "op", "quantize") || is(request, "op", "fake_quantize");
    if (!is(request, "semantics", "1") || !is(spec, "rounding", "half_away") || !is(spec, "zero_point_order", "after") ||
        !is(spec, "overflow", "saturate") || !is(spec, "nan", "raise") || !is(spec, "dequantize", "scale-difference"))
        decline(request, "other quantizers");
    else if (scalar && !is(spec, "quotient", "float32")) decline(request, "other quotients");
    else if (scalar) quantize_all(request, is(request, "op", "fake_quantize"));
    else if (!is(integer, "requantize", "double-round") || !is(integer, "product", "exact") || !is(integer, "factor", "float64") ||
             !is(integer, "accumulator_overflow", "wrap") || get(integer, "accumulator_bits")->number != 32)
        decline(request, "other accumulators");
    else if (is(request, "op", "requantize")) requantize_all(request);
    else if (is(request, "op", "qlinear_matmul")) matmul(request);
    else if (is(request, "op", "qlinear_conv")) conv(request);
    else if (is(request, "op", "qlinear_add") && is(integer, "add", "fixed-point")) add(request);
    else if (is(request, "op", "average_pool")) average_pool(request);
    else decline(request, "no such kernel");
}

int main(void) {
    size_t room = 1 << 16, length = 0;
    char *line = malloc(room);
    for (int c; line && (c = getchar()) != EOF;) {
        if (length + 2 > room) line = realloc(line, room *= 2);
        if (!line) refuse("out of memory");
        line[length++] = (char)c;
        if (c != '\n') continue;
        line[length] = 0;
        length = 0;
        Json *request = read_json(line);
        if (is(request, "protocol", "refquant-1")) printf("{\"protocol\": \"refquant-1\"}\n");
        else if (get(request, "id") && get(request, "id")->kind == TEXT) answer(request);
        else refuse("not a request of refquant-1");
        fflush(stdout);
        free(request);
    }
    free(line);
    return 0;
}
