//! Prometheus text read back: for those who pass a part of it on.

use std::collections::BTreeMap;

/// Cumulative counts of a histogram by the upper bounds of its buckets, the last of them infinite.
pub type Cumulative = Vec<(f64, u64)>;

/// The histogram `name` of a Prometheus text, by the value of one label.
#[must_use]
pub fn histogram(text: &str, name: &str, label: &str) -> BTreeMap<String, Cumulative> {
    let mut found: BTreeMap<String, Cumulative> = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")) else {
            continue;
        };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        let (Some(of), Some(bound)) = (value_of(labels, label), value_of(labels, "le")) else { continue };
        let bound = if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() };
        if let (Some(bound), Ok(count)) = (bound, value.trim().parse()) {
            found.entry(of).or_default().push((bound, count));
        }
    }
    found
}

/// The value of a label, without its escapes.
fn value_of(labels: &str, name: &str) -> Option<String> {
    let mut rest = labels;
    loop {
        let (key, tail) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next()? {
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (at, '"') => break at,
                (_, c) => value.push(c),
            }
        };
        if key.trim_start_matches(',') == name {
            return Some(value);
        }
        rest = tail.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read_by_label() {
        let text = "# TYPE w histogram\nw_bucket{model=\"a\\\"=\\\"b\",le=\"0.1\"} 3\n\
                    w_bucket{model=\"a\\\"=\\\"b\",le=\"+Inf\"} 4\nw_sum{model=\"x\"} 1.5\nwx_bucket{model=\"y\",le=\"1\"} 1\n";
        let found = histogram(text, "w", "model");
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("a\"=\"b".to_owned(), vec![(0.1, 3), (f64::INFINITY, 4)])]
        );
    }
}
