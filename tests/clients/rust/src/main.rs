//! A backend in Rust that speaks refquant-1: exact semantics (profile seed-nearest@1), every rounding on integers.
//!
//! Letters: q codes, s scales, z zero points, acc accumulators; a float is m 2^e with integers m and e.
//!
//! cargo build --release && refquant verify --command target/release/backend --profile seed-nearest@1
//! Wrong on purpose if it is called with the name of a deviation: "24-bit accumulators", "high digits alone",
//! "residual in float32" ("" for none).  A second argument is the folder of a pack, for the graphs of its networks.

mod exact;
mod json;
mod network;

use exact::{binary, parts, quotient, ratio};
use json::{hex, quoted, unhex, Json};
use network::network;
use std::io::{stdin, stdout, BufRead, Write};

struct Array {
    dtype: String,
    shape: Vec<usize>,
    data: Vec<f64>,
}

type Answer = Result<Vec<(String, Array)>, &'static str>; // outputs by name, or why there are none

fn wrong(deviation: &str) -> bool {
    std::env::args().nth(1).as_deref() == Some(deviation)
}

fn one(name: &str, dtype: &str, shape: Vec<usize>, data: Vec<f64>) -> Answer {
    Ok(vec![(name.into(), Array { dtype: dtype.into(), shape, data })])
}

fn codes(shape: Vec<usize>, data: Vec<f64>) -> Answer {
    one("codes", "int32", shape, data)
}

fn sums(shape: Vec<usize>, data: Vec<i64>) -> Answer {
    one("acc", "int32", shape, data.into_iter().map(|acc| hold(acc) as f64).collect())
}

// ---- a request ----

struct Request {
    json: Json,
}

impl Request {
    fn spec(&self, name: &str) -> &Json {
        self.json.get("spec").get(name)
    }

    fn is(&self, part: &str, name: &str, value: &str) -> bool {
        self.json.get(part).get(name).text() == value
    }

    fn away(&self) -> bool {
        self.is("spec", "rounding", "half_away")
    }

    fn option(&self, name: &str, otherwise: [usize; 4]) -> [usize; 4] {
        let mut made = otherwise;
        match self.json.get("options").find(name) {
            Some(Json::List(values)) => values.iter().enumerate().for_each(|(i, v)| made[i] = v.number() as usize),
            Some(value) => made[0] = value.number() as usize,
            None => {}
        }
        made
    }

    fn has(&self, name: &str) -> bool {
        self.json.get("inputs").find(name).is_some()
    }

    fn input(&self, name: &str) -> Array {
        let array = self.json.get("inputs").get(name);
        let shape: Vec<usize> = array.get("shape").list().iter().map(|n| n.number() as usize).collect();
        let mut data: Vec<f64> = array.get("data").list().iter().map(number).collect();
        let size = shape.iter().product();
        if data.len() == 1 {
            data.resize(size, data[0]);
        }
        assert_eq!(data.len(), size, "data of another count");
        Array { dtype: array.get("dtype").text().into(), shape, data }
    }

    fn ends(&self) -> (i128, i128) {
        let (bits, signed) = (self.spec("bits").number(), self.spec("signed").number());
        let low = if signed == 1 { -(1i128 << (bits - 1)) } else { 0 };
        (low + self.spec("narrow").number() as i128, (1i128 << (bits - signed)) - 1)
    }

    fn saturate(&self, v: i128, z: f64) -> f64 {
        let (low, high) = self.ends();
        (v + z as i128).clamp(low, high) as f64
    }

    /// The parameter that serves element i of x: one for all, one a channel, or one a run along an axis.
    fn serving(&self, parameter: &Array, x: &Array, i: usize) -> f64 {
        let grain = self.spec("granularity");
        if parameter.shape.is_empty() {
            return parameter.data[0];
        }
        let axis = grain.get("axis").number().rem_euclid(x.shape.len() as i64) as usize;
        let inner: usize = x.shape[axis + 1..].iter().product();
        let along = i / inner % x.shape[axis];
        if grain.get("kind").text() == "PerChannel" {
            return parameter.data[along];
        }
        let group = i / inner / x.shape[axis] * parameter.shape[axis] + along / grain.get("size").number() as usize;
        parameter.data[group * inner + i % inner]
    }
}

fn number(v: &Json) -> f64 {
    match v {
        Json::Text(text) => unhex(text),
        v => v.number() as f64,
    }
}

fn of(parameter: &Array, channel: usize) -> f64 {
    parameter.data[if parameter.data.len() > 1 { channel } else { 0 }]
}

// ---- quantize ----

fn quantize(r: &Request, x: f64, s: f64, z: f64) -> f64 {
    if x.is_nan() {
        return match r.spec("nan").text() {
            "qmin" => r.ends().0 as f64,
            "qmax" => r.ends().1 as f64,
            _ => z,
        };
    }
    r.saturate(quotient(x, s, r.away()), z)
}

fn quantize_all(r: &Request, fake: bool) -> Answer {
    let (x, s, z) = (r.input("x"), r.input("scale"), r.input("zero_point"));
    if !r.is("spec", "quotient", "exact") || !r.is("spec", "dequantize", "scale-difference") {
        return Err("other quotients or products");
    }
    if fake && x.dtype == "float16" {
        return Err("other types");
    }
    let each = |i: usize| {
        let (s, z) = (r.serving(&s, &x, i), r.serving(&z, &x, i));
        let q = quantize(r, x.data[i], s, z);
        let real = (q - z) * s; // exact, or rounded once, in float64
        if !fake {
            q
        } else if x.dtype == "float32" {
            real as f32 as f64
        } else {
            real
        }
    };
    let data = (0..x.data.len()).map(each).collect();
    if fake {
        return one("y", &x.dtype, x.shape.clone(), data);
    }
    codes(x.shape.clone(), data)
}

// ---- layers ----

/// An accumulator in its register.
fn hold(acc: i64) -> i64 {
    if wrong("24-bit accumulators") {
        acc << 40 >> 40
    } else {
        acc as i32 as i64
    }
}

fn requantize(r: &Request, acc: i64, factor: f64, z: f64) -> f64 {
    let (m, e) = parts(factor);
    r.saturate(binary(acc as i128 * m, e, r.away()), z)
}

fn requantize_all(r: &Request) -> Answer {
    let (acc, z) = (r.input("acc"), r.input("zero_point"));
    let factor = if r.has("multiplier") {
        r.input("multiplier")
    } else {
        let (a, mut w, y) = (r.input("input_scale"), r.input("weight_scale"), r.input("output_scale"));
        w.data.iter_mut().for_each(|s| *s = a.data[0] * *s / y.data[0]);
        w
    };
    let each = |i| requantize(r, acc.data[i] as i64, r.serving(&factor, &acc, i), r.serving(&z, &acc, i));
    codes(acc.shape.clone(), (0..acc.data.len()).map(each).collect())
}

/// Accumulators, the channel of each given, with a bias, as codes.
fn layer(r: &Request, shape: Vec<usize>, acc: Vec<i64>, names: [&str; 2], channel: impl Fn(usize) -> usize) -> Answer {
    let [s_x, s_w, s_y, z_y] = [names[0], names[1], "y_scale", "y_zero_point"].map(|name| r.input(name));
    let bias = r.has("bias").then(|| r.input("bias"));
    let each = |(i, acc): (usize, &i64)| {
        let o = channel(i);
        let factor = s_x.data[0] * of(&s_w, o) / s_y.data[0];
        let total = hold(hold(*acc) + bias.as_ref().map_or(0, |b| b.data[o] as i64));
        requantize(r, total, factor, z_y.data[0])
    };
    codes(shape, acc.iter().enumerate().map(each).collect())
}

/// Sums of (a - z_a) (b - z_b), shape (n, m).
fn matmul(r: &Request) -> (Vec<usize>, Vec<i64>) {
    let [a, b, z_a, z_b] = ["a", "b", "a_zero_point", "b_zero_point"].map(|name| r.input(name));
    let (n, inner, m) = (a.shape[0], b.shape[0], b.shape[1]);
    let term = |i: usize, j: usize, k: usize| {
        let (x, w) = (a.data[i * inner + k] - z_a.data[0], b.data[k * m + j]);
        if r.json.get("op").text() != "matmul_terms" {
            return (x * (w - of(&z_b, j))) as i64;
        }
        let high = (w / 16.0).floor(); // w = 16 high + low
        let low = if wrong("high digits alone") { 0.0 } else { w - 16.0 * high };
        (16.0 * (x * high) + x * low - x * of(&z_b, j)) as i64
    };
    let sum = |e: usize| (0..inner).map(|k| term(e / m, e % m, k)).sum();
    (vec![n, m], (0..n * m).map(sum).collect())
}

/// Sums over windows; the border is the zero point, a real 0.
fn conv(r: &Request) -> (Vec<usize>, Vec<i64>) {
    let [x, w, z_x, z_w] = ["x", "w", "x_zero_point", "w_zero_point"].map(|name| r.input(name));
    let [stride, dilation] = ["stride", "dilation"].map(|name| r.option(name, [1; 4]));
    let ([top, left, bottom, right], groups) = (r.option("padding", [0; 4]), r.option("groups", [1; 4])[0]);
    let (c, h, v, o, i, kh, kw) = (x.shape[1], x.shape[2], x.shape[3], w.shape[0], w.shape[1], w.shape[2], w.shape[3]);
    let rows = (h + top + bottom - dilation[0] * (kh - 1) - 1) / stride[0] + 1;
    let columns = (v + left + right - dilation[1] * (kw - 1) - 1) / stride[1] + 1;
    let sum = |e: usize| {
        let (column, row, out, image) =
            (e % columns, e / columns % rows, e / columns / rows % o, e / columns / rows / o);
        let mut acc = 0;
        for k in 0..i * kh * kw {
            let (p, q, channel) = (k / kw % kh, k % kw, out / (o / groups) * i + k / kw / kh);
            let (y, z) = (row * stride[0] + p * dilation[0], column * stride[1] + q * dilation[1]);
            if y >= top && y < top + h && z >= left && z < left + v {
                let code = x.data[((image * c + channel) * h + y - top) * v + z - left];
                acc += ((code - z_x.data[0]) * (w.data[out * i * kh * kw + k] - of(&z_w, out))) as i64;
            }
        }
        acc
    };
    let shape = vec![x.shape[0], o, rows, columns];
    let size = shape.iter().product::<usize>();
    (shape, (0..size).map(sum).collect())
}

fn add(r: &Request) -> Answer {
    let [a, b, z_a, z_b, z_y] = ["a", "b", "a_zero_point", "b_zero_point", "y_zero_point"].map(|name| r.input(name));
    let [s_a, s_b, s_y] = ["a_scale", "b_scale", "y_scale"].map(|name| r.input(name).data[0]);
    let ((m_a, e_a), (m_b, e_b)) = (parts(s_a / s_y), parts(s_b / s_y));
    let e = e_a.min(e_b);
    if (e_a - e_b).abs() > 30 {
        return Err("scales so far apart");
    }
    let (m_a, m_b) = (m_a << (e_a - e), m_b << (e_b - e));
    let each = |i: usize| {
        let total = m_a * (a.data[i] - z_a.data[0]) as i128 + m_b * (b.data[i] - z_b.data[0]) as i128;
        r.saturate(binary(total, e, r.away()), z_y.data[0])
    };
    codes(a.shape.clone(), (0..a.data.len()).map(each).collect())
}

fn average_pool(r: &Request) -> Answer {
    let (x, z) = (r.input("x"), r.input("zero_point").data[0]);
    let kernel = r.option("kernel", [1; 4]);
    let (stride, [top, left, bottom, right]) = (r.option("stride", kernel), r.option("padding", [0; 4]));
    let padded = r.option("count_include_pad", [0; 4])[0];
    let (h, v) = (x.shape[2], x.shape[3]);
    let (rows, columns) =
        ((h + top + bottom - kernel[0]) / stride[0] + 1, (v + left + right - kernel[1]) / stride[1] + 1);
    let mean = |e: usize| {
        let (column, row, plane) = (e % columns, e / columns % rows, e / columns / rows);
        let (mut sum, mut count) = (0, 0);
        for k in 0..kernel[0] * kernel[1] {
            let (y, z_) = (row * stride[0] + k / kernel[1], column * stride[1] + k % kernel[1]);
            let inside = y >= top && y < top + h && z_ >= left && z_ < left + v;
            if inside {
                sum += (x.data[(plane * h + y - top) * v + z_ - left] - z) as i128;
            }
            count += (inside || padded == 1) as i128;
        }
        r.saturate(ratio(sum, count, r.away()), z)
    };
    let shape = vec![x.shape[0], x.shape[1], rows, columns];
    let size = shape.iter().product::<usize>();
    codes(shape, (0..size).map(mean).collect())
}

// ---- sums of terms ----

fn encode_terms(r: &Request) -> Answer {
    let (x, scales) = (r.input("x"), r.input("scales"));
    if r.option("rest_unsigned", [0; 4])[0] == 1 {
        return Err("other grids");
    }
    let mut rest = x.data.clone();
    let mut data = Vec::new();
    for &s in &scales.data {
        for v in &mut rest {
            let q = r.saturate(quotient(*v, s, r.away()), 0.0);
            *v = if wrong("residual in float32") { (*v as f32 - s as f32 * q as f32) as f64 } else { *v - s * q };
            data.push(q);
        }
    }
    codes([vec![scales.data.len()], x.shape].concat(), data)
}

fn decode_terms(r: &Request) -> Answer {
    let (q, scales) = (r.input("codes"), r.input("scales"));
    let shape = q.shape[1..].to_vec();
    let size = shape.iter().product::<usize>();
    let sum = |i: usize| {
        let terms = scales.data.iter().enumerate().map(|(t, s)| q.data[t * size + i] * s);
        terms.reduce(|a, b| a + b).unwrap_or(0.0) as f32 as f64
    };
    one("x", "float32", shape, (0..size).map(sum).collect())
}

// ---- the talk ----

fn outputs(r: &Request) -> Answer {
    let modes = r.is("spec", "rounding", "half_even") || r.away();
    if !modes || !r.is("spec", "zero_point_order", "after") || !r.is("spec", "overflow", "saturate") {
        return Err("other quantizers");
    }
    let names =
        [("requantize", "exact"), ("product", "exact"), ("factor", "float64"), ("add", "exact"), ("pool", "exact")];
    if names.iter().any(|(name, value)| !r.is("integer", name, value))
        || !r.is("integer", "accumulator_overflow", "wrap")
    {
        return Err("other integers");
    }
    match r.json.get("op").text() {
        "quantize" => quantize_all(r, false),
        "fake_quantize" => quantize_all(r, true),
        "requantize" => requantize_all(r),
        "matmul_integer" | "matmul_terms" => {
            let (shape, acc) = matmul(r);
            sums(shape, acc)
        }
        "conv_integer" => {
            let (shape, acc) = conv(r);
            sums(shape, acc)
        }
        "qlinear_matmul" => {
            let (shape, acc) = matmul(r);
            let m = shape[1];
            layer(r, shape, acc, ["a_scale", "b_scale"], |i| i % m)
        }
        "qlinear_conv" => {
            let (shape, acc) = conv(r);
            let (o, plane) = (shape[1], shape[2] * shape[3]);
            layer(r, shape, acc, ["x_scale", "w_scale"], |i| i / plane % o)
        }
        "qlinear_add" => add(r),
        "average_pool" => average_pool(r),
        "encode_terms" => encode_terms(r),
        "decode_terms" => decode_terms(r),
        "network" => match std::env::args().nth(2) {
            Some(folder) => network(r, &folder),
            None => Err("no folder with graphs"),
        },
        _ => Err("no such kernel"),
    }
}

fn array(a: &Array) -> String {
    let float = a.dtype.starts_with("float");
    let data: Vec<String> = a.data.iter().map(|v| if float { quoted(&hex(*v)) } else { format!("{v}") }).collect();
    format!("{{\"dtype\": \"{}\", \"shape\": {:?}, \"data\": [{}]}}", a.dtype, a.shape, data.join(", "))
}

fn main() {
    for line in stdin().lock().lines() {
        let json = Json::read(&line.expect("UTF-8"));
        if let Some(version) = json.find("protocol") {
            assert_eq!(version.text(), "refquant-1");
            println!("{{\"protocol\": \"refquant-1\"}}");
        } else {
            let request = Request { json };
            let id = quoted(request.json.get("id").text());
            match outputs(&request) {
                Err(why) => println!("{{\"id\": {id}, \"declined\": {}}}", quoted(why)),
                Ok(found) => {
                    let named: Vec<String> = found.iter().map(|(n, a)| format!("\"{n}\": {}", array(a))).collect();
                    println!("{{\"id\": {id}, \"outputs\": {{{}}}}}", named.join(", "));
                }
            }
        }
        stdout().flush().expect("an output");
    }
}
