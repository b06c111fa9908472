// A backend in JavaScript that speaks refquant-1: ONNX's semantics (profile onnx@21), in float32 by Math.fround.
//
// Letters: q codes, s scales, z zero points, acc accumulators, f the factor of a layer in float32.
//
// refquant verify --command "node backend.mjs" --profile onnx@21
// Wrong on purpose if it is called with the name of a deviation: "reciprocal", "groups interleaved", "codes added".

import { createInterface } from "node:readline";

const deviation = process.argv[2];
const f32 = Math.fround;

class Declined extends Error {}
const need = (condition, what) => { if (!condition) throw new Declined(what); };

// ---- arrays ----

const unhex = (text) => {
  const [, sign, one, rest = "", exponent] = /^([+-]?)0x([01])(?:\.([0-9a-f]+))?p([+-]?\d+)$/.exec(text) ?? [];
  if (one === undefined) return { nan: NaN, inf: Infinity, "-inf": -Infinity }[text.replace("+", "")];
  const value = parseInt(one + rest, 16) * 2 ** (Number(exponent) - 4 * rest.length);
  return sign === "-" ? -value : value;
};

const hex = (value) => {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const bits = new DataView(new Float64Array([value]).buffer).getBigUint64(0, true);
  const exponent = Number((bits >> 52n) & 0x7ffn);
  const digits = (bits & 0xfffffffffffffn).toString(16).padStart(13, "0");
  return `${bits >> 63n ? "-" : ""}0x${exponent ? 1 : 0}.${digits}p${Math.max(exponent, 1) - 1023}`;
};

const decode = ({ dtype, shape, data }) => {
  const size = shape.reduce((a, b) => a * b, 1);
  const values = data.map((v) => (typeof v === "string" ? unhex(v) : v));
  return { dtype, shape, data: size === values.length ? values : new Array(size).fill(values[0]) };
};

const encode = ({ dtype, shape, data }) => ({ dtype, shape, data: dtype.startsWith("float") ? data.map(hex) : data });
const codes = (shape, data) => ({ codes: { dtype: "int32", shape, data } });
const of = (parameter, channel) => parameter.data[parameter.data.length > 1 ? channel : 0];

// ---- rounding ----

const halfEven = (v) => {
  const n = Math.floor(v), r = v - n;
  return r < 0.5 || (r === 0.5 && n % 2 === 0) ? n : n + 1;
};

const f16 = (v) => { // v rounded to float16: a multiple of 2^(exponent - 10), of 2^-24 at least
  const a = Math.abs(v);
  if (!(a < 65520)) return v < 0 ? -Infinity : v > 0 ? Infinity : v;
  let exponent = -14;
  while (2 ** (exponent + 1) <= a) exponent++;
  const unit = 2 ** (exponent - 10), r = halfEven(a / unit) * unit;
  return v < 0 || Object.is(v, -0) ? -r : r;
};

const to = { float16: f16, float32: f32, float64: (v) => v };

// ---- one element ----

const ends = ({ bits, signed, narrow }) =>
  [(signed ? -(2 ** (bits - 1)) : 0) + (narrow ? 1 : 0), 2 ** (bits - (signed ? 1 : 0)) - 1];

const saturate = (v, spec) => {
  const [low, high] = ends(spec);
  return Math.min(Math.max(v, low), high);
};

const quantize = (x, s, z, spec) => {
  if (Number.isNaN(x)) return { zero: z, qmin: ends(spec)[0], qmax: ends(spec)[1] }[spec.nan];
  const q = deviation === "reciprocal" ? f32(f32(x) * f32(1 / f32(s))) : f32(f32(x) / f32(s));
  return saturate(halfEven(q) + z, spec);
};

const dequantize = (q, s, z, spec, round) =>
  spec.dequantize === "difference-of-products" ? round(round(q * s) - round(z * s)) : round((q - z) * s);

// The parameter that serves element i: one for all, one a channel, or one a run along an axis.
const serving = (parameter, { shape }, i, { kind, axis, size }) => {
  if (kind === "PerTensor") return parameter.data[0];
  const a = axis < 0 ? axis + shape.length : axis;
  const inner = shape.slice(a + 1).reduce((m, n) => m * n, 1);
  const along = Math.floor(i / inner) % shape[a];
  if (kind === "PerChannel") return parameter.data[along];
  const outer = Math.floor(i / inner / shape[a]);
  return parameter.data[(outer * parameter.shape[a] + Math.floor(along / size)) * inner + (i % inner)];
};

const each = (x, { scale, zero_point }, spec, rule) =>
  x.data.map((v, i) => rule(v, serving(scale, x, i, spec.granularity), serving(zero_point, x, i, spec.granularity)));

const checked = (spec) => {
  need(spec.rounding === "half_even" && spec.zero_point_order === "after", "other roundings");
  need(spec.overflow === "saturate", "other overflows");
};

const quantizer = (spec) => {
  checked(spec);
  need(spec.quotient === "float32", "other quotients");
};

// ---- layers ----

const wrap = (acc) => Number(BigInt.asIntN(32, BigInt(acc)));

const requantize = (acc, f, z, spec) => saturate((f === 1 ? acc : halfEven(f32(f32(acc) * f32(f)))) + z, spec);

const factor = (a, w, y, channel) => f32(f32(a.data[0] * of(w, channel)) / y.data[0]);

const layer = ({ spec, integer }) => {
  checked(spec);
  need(integer.requantize === "float32" && integer.factor === "float32", "other requantizations");
  need(integer.product === "exact" && integer.accumulator_bits === 32, "other accumulators");
  need(integer.accumulator_overflow === "wrap", "other accumulators");
};

const OPERATIONS = {
  quantize: ({ x, ...parameters }, { spec }) => {
    quantizer(spec);
    return codes(x.shape, each(x, parameters, spec, (v, s, z) => quantize(v, s, z, spec)));
  },

  dequantize: ({ codes: q, ...parameters }, { spec, options }) => {
    const dtype = options.dtype ?? "float32";
    need(dtype in to, "other types");
    const data = each(q, parameters, spec, (v, s, z) => dequantize(v, s, z, spec, to[dtype]));
    return { x: { dtype, shape: q.shape, data } };
  },

  fake_quantize: ({ x, ...parameters }, { spec }) => {
    quantizer(spec);
    const rule = (v, s, z) => dequantize(quantize(v, s, z, spec), s, z, spec, to[x.dtype]);
    return { y: { ...x, data: each(x, parameters, spec, rule) } };
  },

  dynamic_quantize: ({ x }, { spec, options }) => {
    quantizer(spec);
    need(options.rule === "onnx-dynamic", "other rules");
    const lo = f32(Math.min(...x.data, 0)), hi = f32(Math.max(...x.data, 0)), [qmin, qmax] = ends(spec);
    const s = lo === hi ? 1 : Math.max(f32(f32(hi - lo) / (qmax - qmin)), 2 ** -149);
    const z = saturate(halfEven(f32(qmin - f32(lo / s))), spec);
    return {
      ...codes(x.shape, x.data.map((v) => quantize(v, s, z, spec))),
      scale: { dtype: "float32", shape: [], data: [s] },
      zero_point: { dtype: "int32", shape: [], data: [z] },
    };
  },

  requantize: ({ acc, multiplier, input_scale, weight_scale, output_scale, zero_point }, request) => {
    layer(request);
    const scale = multiplier ?? {
      ...weight_scale, data: weight_scale.data.map((_, i) => factor(input_scale, weight_scale, output_scale, i)),
    };
    const rule = (v, f, z) => requantize(v, f, z, request.spec);
    return codes(acc.shape, each(acc, { scale, zero_point }, request.spec, rule));
  },

  qlinear_matmul: (i, request) => {
    layer(request);
    const [N, K] = i.a.shape, M = i.b.shape[1], y = [];
    for (let n = 0; n < N; n++)
      for (let m = 0; m < M; m++) {
        let acc = 0;
        for (let k = 0; k < K; k++)
          acc += (i.a.data[n * K + k] - i.a_zero_point.data[0]) * (i.b.data[k * M + m] - of(i.b_zero_point, m));
        const f = factor(i.a_scale, i.b_scale, i.y_scale, m);
        y.push(requantize(wrap(acc), f, i.y_zero_point.data[0], request.spec));
      }
    return codes([N, M], y);
  },

  qlinear_conv: (i, request) => {
    layer(request);
    const { stride = [1, 1], dilation = [1, 1], padding: [top, left, bottom, right] = [0, 0, 0, 0], groups = 1 } = request.options;
    const [N, C, H, W] = i.x.shape, [O, I, kh, kw] = i.w.shape, y = [];
    const rows = Math.floor((H + top + bottom - dilation[0] * (kh - 1) - 1) / stride[0]) + 1;
    const columns = Math.floor((W + left + right - dilation[1] * (kw - 1) - 1) / stride[1]) + 1;
    for (let n = 0; n < N; n++)
      for (let o = 0; o < O; o++) {
        const group = deviation === "groups interleaved" ? o % groups : Math.floor(o / (O / groups));
        const f = factor(i.x_scale, i.w_scale, i.y_scale, o);
        for (let r = 0; r < rows; r++)
          for (let c = 0; c < columns; c++) {
            let acc = i.bias?.data[o] ?? 0;
            for (let k = 0; k < I; k++)
              for (let u = 0; u < kh; u++)
                for (let v = 0; v < kw; v++) {
                  const h = r * stride[0] - top + u * dilation[0], g = c * stride[1] - left + v * dilation[1];
                  if (h < 0 || h >= H || g < 0 || g >= W) continue; // the zero point: a real 0
                  const q = i.x.data[((n * C + group * I + k) * H + h) * W + g] - i.x_zero_point.data[0];
                  acc += q * (i.w.data[((o * I + k) * kh + u) * kw + v] - of(i.w_zero_point, o));
                }
            y.push(requantize(wrap(acc), f, i.y_zero_point.data[0], request.spec));
          }
      }
    return codes([N, O, rows, columns], y);
  },

  qlinear_add: (i, request) => {
    layer(request);
    need(request.integer.add === "float32", "other sums");
    const real = (name, k) => f32((i[name].data[k] - i[`${name}_zero_point`].data[0]) * i[`${name}_scale`].data[0]);
    const sum = (k) => deviation === "codes added"
      ? i.a.data[k] - i.a_zero_point.data[0] + i.b.data[k] - i.b_zero_point.data[0]
      : halfEven(f32(f32(real("a", k) + real("b", k)) / i.y_scale.data[0]));
    return codes(i.a.shape, i.a.data.map((_, k) => saturate(sum(k) + i.y_zero_point.data[0], request.spec)));
  },
};

// ---- the talk ----

const map = (object, rule) => Object.fromEntries(Object.entries(object).map(([name, value]) => [name, rule(value)]));

const answer = (request) => {
  try {
    need(request.semantics === "1" && request.op in OPERATIONS, "no such operation");
    return { id: request.id, outputs: map(OPERATIONS[request.op](map(request.inputs, decode), request), encode) };
  } catch (error) {
    if (error instanceof Declined) return { id: request.id, declined: error.message };
    throw error;
  }
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  console.log(JSON.stringify(request.protocol === "refquant-1" ? request : answer(request)));
}
