//! JSON, and the hexadecimal floats of the protocol.

use std::fmt::Write;

#[derive(Debug)]
pub enum Json {
    Null,
    Flag(bool),
    Number(i64),
    Real(f64), // in the files of graphs alone
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value of a line; panics for what is not JSON.
    pub fn read(line: &str) -> Json {
        Reader { rest: line }.value()
    }

    pub fn find(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// A member that a request must have.
    pub fn get(&self, key: &str) -> &Json {
        self.find(key).unwrap_or_else(|| panic!("no {key}"))
    }

    pub fn real(&self) -> f64 {
        match self {
            Json::Real(v) => *v,
            other => other.number() as f64,
        }
    }

    pub fn list(&self) -> &[Json] {
        match self {
            Json::List(values) => values,
            other => panic!("{other:?} is no list"),
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Json::Text(text) => text,
            other => panic!("{other:?} is no text"),
        }
    }

    /// An integer, or a flag as 0 or 1.
    pub fn number(&self) -> i64 {
        match self {
            Json::Number(n) => *n,
            Json::Flag(on) => *on as i64,
            other => panic!("{other:?} is no integer"),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// Whether the text goes on so, which is then taken.
    fn take(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, token: &str) {
        assert!(self.take(token), "not JSON: no {token} before {:.20}", self.rest);
    }

    fn text(&mut self) -> String {
        self.expect("\"");
        let mut made = String::new();
        let mut letters = self.rest.chars();
        loop {
            match letters.next().expect("a text without end") {
                '"' => break,
                '\\' => match letters.next().expect("a text without end") {
                    'n' => made.push('\n'),
                    't' => made.push('\t'),
                    'u' => {
                        let code: String = letters.by_ref().take(4).collect();
                        made.push(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or('?'));
                    }
                    other => made.push(other),
                },
                other => made.push(other),
            }
        }
        self.rest = letters.as_str();
        made
    }

    /// What stands between two brackets, with commas between.
    fn items<T>(&mut self, close: &str, item: impl Fn(&mut Self) -> T) -> Vec<T> {
        let mut found = Vec::new();
        while !self.take(close) {
            if !found.is_empty() {
                self.expect(",");
            }
            found.push(item(self));
        }
        found
    }

    fn value(&mut self) -> Json {
        if self.take("{") {
            return Json::Object(self.items("}", |r| {
                let key = r.text();
                r.expect(":");
                (key, r.value())
            }));
        }
        if self.take("[") {
            return Json::List(self.items("]", Self::value));
        }
        for (word, value) in [("null", Json::Null), ("true", Json::Flag(true)), ("false", Json::Flag(false))] {
            if self.take(word) {
                return value;
            }
        }
        if self.rest.starts_with('"') {
            return Json::Text(self.text());
        }
        let end = self.rest.find(|c: char| !"+-.eE".contains(c) && !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        let whole = digits.parse().map(Json::Number);
        whole.unwrap_or_else(|_| Json::Real(digits.parse().expect("a number")))
    }
}

/// A text in quotation marks.
pub fn quoted(text: &str) -> String {
    let mut made = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                made.push('\\');
                made.push(c)
            }
            c if c < ' ' => write!(made, "\\u{:04x}", c as u32).unwrap(),
            c => made.push(c),
        }
    }
    made + "\""
}

/// The float of a hexadecimal text, exactly.
pub fn unhex(text: &str) -> f64 {
    let (sign, size) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.trim_start_matches('+')),
    };
    if let Some((digits, exponent)) = size.strip_prefix("0x").and_then(|rest| rest.split_once('p')) {
        let places = digits.len().saturating_sub(2) as i32;
        let whole = u64::from_str_radix(&digits.replace('.', ""), 16).expect("hexadecimal digits") as f64;
        let shift = exponent.parse::<i32>().expect("an exponent") - 4 * places;
        return sign * whole * 2f64.powi(shift / 2) * 2f64.powi(shift - shift / 2);
    }
    sign * size.parse::<f64>().expect("a float")
}

pub fn hex(v: f64) -> String {
    if !v.is_finite() {
        return if v.is_nan() {
            "nan".into()
        } else if v > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let (bits, sign) = (v.to_bits(), if v.is_sign_negative() { "-" } else { "" });
    let (exponent, digits) = ((bits >> 52 & 0x7ff) as i64, bits & 0xf_ffff_ffff_ffff);
    format!("{sign}0x{}.{digits:013x}p{}", (exponent > 0) as i32, exponent.max(1) - 1023)
}
