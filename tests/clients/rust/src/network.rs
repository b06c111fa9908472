//! Whole networks in integers: the graph is a file of the pack, every number of the plan an input of the request.
//!
//! Letters: d = q - z the difference of a code and its zero point, f a factor of scales.

use crate::exact::{binary, parts, quotient, ratio};
use crate::json::Json;
use crate::{hold, Answer, Array, Request};
use std::collections::HashMap;

/// Differences d with shape (N, ...).
struct Tensor {
    shape: Vec<usize>,
    d: Vec<i64>,
}

/// The scale and zero point of a tensor.
#[derive(Clone, Copy)]
struct Edge {
    s: f64,
    z: f64,
}

/// The tensor's own quantizer, or that of its only reader, which changes nothing in the order.
fn edge(r: &Request, nodes: &[Json], tensor: &str) -> Edge {
    if r.has(&format!("{tensor}.scale")) {
        let one = |part: &str| r.input(&format!("{tensor}.{part}")).data[0];
        return Edge { s: one("scale"), z: one("zero_point") };
    }
    let reads = |node: &&Json| node.get("inputs").list().iter().any(|name| name.text() == tensor);
    edge(r, nodes, nodes.iter().find(reads).expect("a reader").get("name").text())
}

/// v times a factor, rounded, in steps of the output.
fn scaled(r: &Request, v: i64, f: f64) -> i128 {
    let (m, e) = parts(f);
    binary(v as i128 * m, e, r.away())
}

fn pair(attrs: &Json, name: &str) -> (usize, usize) {
    let values = attrs.get(name).list();
    (values[0].number() as usize, values[1].number() as usize)
}

/// For every output of a window, folds what the kernel sees of the input channels of its group.
fn windows<T>(
    x: &Tensor,
    out: usize,
    groups: usize,
    attrs: &Json,
    fold: impl Fn(usize, &[(usize, i64)]) -> T,
) -> (Vec<usize>, Vec<T>) {
    let (c, h, w) = (x.shape[1], x.shape[2], x.shape[3]);
    let ((kh, kw), (sh, sw), (dh, dw)) = (pair(attrs, "kernel"), pair(attrs, "stride"), pair(attrs, "dilation"));
    let pad: Vec<usize> = attrs.get("padding").list().iter().map(|n| n.number() as usize).collect();
    let rows = (h + pad[0] + pad[2] - dh * (kh - 1) - 1) / sh + 1;
    let columns = (w + pad[1] + pad[3] - dw * (kw - 1) - 1) / sw + 1;
    let shape = vec![x.shape[0], out, rows, columns];
    let each_in = c / groups;
    let one = |e: usize| {
        let (column, row, o, image) =
            (e % columns, e / columns % rows, e / columns / rows % out, e / columns / rows / out);
        let mut seen = Vec::new(); // (place in the kernel, difference); the border is a difference of 0
        for k in 0..each_in * kh * kw {
            let (i, p, q) = (o / (out / groups) * each_in + k / kw / kh, k / kw % kh, k % kw);
            let (y, v) = (row * sh + p * dh, column * sw + q * dw);
            if y >= pad[0] && y < pad[0] + h && v >= pad[1] && v < pad[1] + w {
                seen.push((k, x.d[((image * c + i) * h + y - pad[0]) * w + v - pad[1]]));
            }
        }
        fold(o, &seen)
    };
    let size = shape.iter().product::<usize>();
    (shape, (0..size).map(one).collect())
}

/// The accumulators of a Conv or Gemm with its bias, requantized.
fn linear(r: &Request, node: &Json, x: &Tensor, read: Edge, made: Edge) -> (Vec<usize>, Vec<i128>) {
    let (name, attrs) = (node.get("name").text(), node.get("attrs"));
    let [w, s_w, bias] = ["weight", "weight_scale", "bias"].map(|part| r.input(&format!("{name}.{part}")));
    let (out, size) = (w.shape[0], w.shape[1..].iter().product::<usize>());
    let total = |o: usize, terms: &mut dyn Iterator<Item = (usize, i64)>| {
        let acc: i64 = terms.map(|(k, d)| d * w.data[o * size + k] as i64).sum();
        let s = s_w.data[if s_w.data.len() > 1 { o } else { 0 }];
        scaled(r, hold(acc + bias.data[o] as i64), read.s * s / made.s)
    };
    if node.get("op").text() == "Conv" {
        let groups = attrs.get("groups").number() as usize;
        return windows(x, out, groups, attrs, |o, seen| total(o, &mut seen.iter().copied()));
    }
    let row = |e: usize| total(e % out, &mut x.d[e / out * size..][..size].iter().copied().enumerate());
    (vec![x.shape[0], out], (0..x.shape[0] * out).map(row).collect())
}

/// The output of a node in its own steps.
fn step(r: &Request, node: &Json, x: &[&Tensor], read: &[Edge], made: Edge) -> (Vec<usize>, Vec<i128>) {
    let (first, f) = (x[0], read[0].s / made.s);
    let like = |shape: Vec<usize>, d: Vec<i64>| (shape, d.into_iter().map(|v| scaled(r, v, f)).collect());
    match node.get("op").text() {
        "Conv" | "Gemm" => linear(r, node, first, read[0], made),
        "Relu" => like(first.shape.clone(), first.d.iter().map(|v| *v.max(&0)).collect()),
        "Flatten" => like(vec![first.shape[0], first.shape[1..].iter().product()], first.d.clone()),
        "MaxPool" => {
            let (c, most) =
                (first.shape[1], |_: usize, seen: &[(usize, i64)]| seen.iter().map(|s| s.1).max().unwrap_or(0));
            let (shape, d) = windows(first, c, c, node.get("attrs"), most);
            like(shape, d)
        }
        "GlobalAvgPool" => {
            let ((m, e), n) = (parts(f), first.shape[2] * first.shape[3]);
            let mean = |plane: &[i64]| {
                let sum = plane.iter().sum::<i64>() as i128 * m;
                ratio(sum << e.max(0), (n as i128) << (-e).max(0), r.away())
            };
            (vec![first.shape[0], first.shape[1], 1, 1], first.d.chunks(n).map(mean).collect())
        }
        "Add" => {
            let ((m, e), (n, g)) = (parts(f), parts(read[1].s / made.s));
            let least = e.min(g);
            let sum = |(a, b): (&i64, &i64)| {
                binary((*a as i128 * m << (e - least)) + (*b as i128 * n << (g - least)), least, r.away())
            };
            (first.shape.clone(), first.d.iter().zip(&x[1].d).map(sum).collect())
        }
        other => panic!("no layer {other}"),
    }
}

/// The codes of every tensor of a network.
pub fn network(r: &Request, folder: &str) -> Answer {
    let name = r.json.get("options").get("network").text();
    let graph = Json::read(&std::fs::read_to_string(format!("{folder}/graph-{name}.json")).expect("a graph"));
    let (entry, nodes) = (graph.get("input"), graph.get("nodes").list());
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let mut outputs = Vec::new();
    let mut keep = |tensor: &str, shape: Vec<usize>, k: Vec<i128>, made: Edge| {
        let q: Vec<f64> = k.into_iter().map(|v| r.saturate(v, made.z)).collect();
        let d = q.iter().map(|v| (v - made.z) as i64).collect();
        outputs.push((tensor.to_string(), Array { dtype: "int32".into(), shape: shape.clone(), data: q }));
        Tensor { shape, d }
    };
    let (images, first) = (r.input("x"), entry.get("name").text());
    let [scale, mean, std] = ["scale", "mean", "std"].map(|part| entry.get(part).real() as f32);
    let made = edge(r, nodes, first);
    let seen = images.data.iter().map(|v| ((*v as f32 * scale - mean) / std) as f64);
    let k = seen.map(|v| quotient(v, made.s, r.away())).collect();
    tensors.insert(first.into(), keep(first, images.shape.clone(), k, made));
    for node in nodes {
        let (name, inputs) = (node.get("name").text(), node.get("inputs").list());
        let made = edge(r, nodes, name);
        let x: Vec<&Tensor> = inputs.iter().map(|t| &tensors[t.text()]).collect();
        let read: Vec<Edge> = inputs.iter().map(|t| edge(r, nodes, t.text())).collect();
        let (shape, k) = step(r, node, &x, &read, made);
        let kept = keep(name, shape, k, made);
        tensors.insert(name.into(), kept);
    }
    Ok(outputs)
}
