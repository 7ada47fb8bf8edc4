//! Mutations of JSON by seed: values that lead out, that are too large, too many, too deep, or of another kind.

use serde_json::{Value, json};

/// A small generator: the same numbers for the same seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A text that leads somewhere, if anybody believes it. `outside` is a folder that nobody may touch.
pub fn hostile_text(dice: &mut Dice, outside: &str) -> String {
    let planted = format!("{outside}/planted");
    let canary = format!("{outside}/canary");
    let long = "x".repeat(300);
    let texts = [
        "../planted",
        "../../planted",
        "a/../../planted",
        ".",
        "..",
        "",
        "/",
        &planted,
        &canary,
        "-x",
        ".hidden",
        ".km1tmp-x",
        "nul\0nul",
        "line\nbreak",
        "\u{1b}]0;title\u{7}\u{1b}[2JError: all is lost",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "nbd:127.0.0.1:1",
        "fat:rw:/",
        "/dev/zero",
        "con.raw",
        &long,
        "caf\u{e9}",
        "km1-20261122T180000Z-3f9a1c0d7be2",
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
    ];
    (*dice.pick(&texts)).to_owned()
}

fn hostile(dice: &mut Dice, outside: &str) -> Value {
    match dice.below(8) {
        0..=3 => json!(hostile_text(dice, outside)),
        4 => dice.pick(&[json!(0), json!(-1), json!(u64::MAX), json!(1.5e300), json!(1_u64 << 62), json!(3)]).clone(),
        5 => dice.pick(&[Value::Null, json!(true), json!([]), json!({})]).clone(),
        6 => (0..200).fold(json!(1), |deep, _| json!([deep])),
        _ => json!(vec![json!({ "name": hostile_text(dice, outside) }); 500]),
    }
}

/// Changes one value somewhere in `value`.
pub fn mutate(value: &mut Value, dice: &mut Dice, outside: &str) {
    let places = count(value);
    let mut left = dice.below(places);
    let new = hostile(dice, outside);
    replace(value, &mut left, new, dice.below(2) == 0);
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Replaces the value that is reached after `left` others, or, where that is a list, has it say everything twice.
fn replace(value: &mut Value, left: &mut usize, new: Value, doubles: bool) -> Option<Value> {
    if *left == 0 {
        match value {
            Value::Array(items) if doubles => items.extend(items.clone()),
            Value::Array(_) | Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => *value = new,
        }
        return None;
    }
    *left -= 1;
    let mut new = Some(new);
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    for child in children {
        new = replace(child, left, new?, doubles);
    }
    new
}

#[test]
fn every_place_is_reached_and_the_same_seed_gives_the_same() {
    let sample = json!({ "a": [1, 2, { "b": "c" }], "d": null });
    let mutated = |seed: u64| {
        let mut value = sample.clone();
        mutate(&mut value, &mut Dice::new(seed), "/outside");
        value
    };
    let all: std::collections::BTreeSet<String> = (0..500).map(|seed| mutated(seed).to_string()).collect();
    assert!(all.len() > 100 && (0..50).all(|seed| mutated(seed) == mutated(seed)));
}
