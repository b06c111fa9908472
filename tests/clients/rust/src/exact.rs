//! Rounding by integers alone: a float is m 2^e with integers m and e.

/// |v| as (m, e): |v| = m 2^e with 2^52 <= m < 2^53; v finite and not 0.
pub fn parts(v: f64) -> (i128, i32) {
    let bits = v.to_bits() & !(1 << 63);
    let (exponent, fraction) = ((bits >> 52) as i32, (bits & ((1 << 52) - 1)) as i128);
    let m = if exponent > 0 { fraction | 1 << 52 } else { fraction };
    let shift = 52 - m.ilog2() as i32;
    (m << shift, exponent.max(1) - 1075 - shift)
}

pub const HUGE: i128 = 1 << 60; // beyond every range

/// n / d rounded to an integer, ties to even or away from zero; d > 0.
pub fn ratio(n: i128, d: i128, away: bool) -> i128 {
    let (q, r) = (n.abs() / d, n.abs() % d);
    let up = 2 * r > d || (2 * r == d && (away || q % 2 == 1));
    n.signum() * (q + up as i128)
}

/// n 2^e rounded to an integer; |n| < 2^100.
pub fn binary(n: i128, e: i32, away: bool) -> i128 {
    match e {
        _ if n == 0 || e < -102 => 0,
        _ if e > 60 => n.signum() * HUGE,
        _ if e >= 0 => n.signum() * (n.abs().min(HUGE) << e.min(60)).clamp(0, HUGE),
        _ => ratio(n, 1 << -e, away),
    }
}

/// x / s rounded to an integer.
pub fn quotient(x: f64, s: f64, away: bool) -> i128 {
    if x == 0.0 {
        return 0;
    }
    let sign = x.signum() as i128;
    if x.is_infinite() {
        return sign * HUGE;
    }
    let ((n, e), (d, f)) = (parts(x), parts(s));
    match e - f {
        shift if shift > 60 => sign * HUGE, // the mantissas' ratio lies between 1/2 and 2
        shift if shift < -3 => 0,
        shift => sign * ratio(n << shift.max(0), d << (-shift).max(0), away),
    }
}
