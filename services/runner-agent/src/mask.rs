//! Takes secrets out of what an engine says, before it is told to anybody.

use std::fmt;
use std::ops::Range;

const HIDDEN: &str = "***";
/// Shorter values are words of any log, and hiding them would tell more than it hides.
const SHORTEST: usize = 6;
/// Tokens of known makers are at least so long with their prefix.
const TOKEN: usize = 20;

/// The values of an engine's environment, none of which may be told. Never printed itself.
#[derive(Clone, Default)]
pub(crate) struct Mask(Vec<String>);

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Mask {
    pub(crate) fn of<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known = Vec::new();
        for value in values {
            // Logs are told line by line, and a value may have several: a key, a file of credentials.
            for part in value.split(['\n', '\r']).map(printable).chain([as_json(value)]) {
                let part = part.trim();
                if part.chars().count() >= SHORTEST && !known.iter().any(|k| k == part) {
                    known.push(part.to_owned());
                }
            }
        }
        Self(known)
    }

    /// `text` with every known value, and whatever looks like a token or a password, as `***`.
    pub(crate) fn hide(&self, text: &str) -> String {
        replace(text, self.found(text))
    }

    /// The same for a text that was cut off, maybe within a value.
    pub(crate) fn hide_cut(&self, text: &str) -> String {
        let mut found = self.found(text);
        for value in &self.0 {
            let begins = value.char_indices().skip(SHORTEST).filter_map(|(end, _)| value.get(..end));
            let longest = begins.filter(|begin| text.ends_with(begin)).last();
            found.extend(longest.map(|begin| text.len() - begin.len()..text.len()));
        }
        replace(text, found)
    }

    fn found(&self, text: &str) -> Vec<Range<usize>> {
        let values = self.0.iter().flat_map(|value| text.match_indices(value.as_str()));
        let values = values.map(|(at, value)| at..at + value.len());
        values.chain(tokens(text)).chain(bearers(text)).chain(users(text)).collect()
    }
}

/// What is left of a text where control characters are taken out, as they are of log lines.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// As it stands in a JSON string.
fn as_json(value: &str) -> String {
    let quoted = serde_json::to_string(value).unwrap_or_default();
    quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default().to_owned()
}

fn replace(text: &str, mut found: Vec<Range<usize>>) -> String {
    found.sort_by_key(|range| range.start);
    let mut shown = String::with_capacity(text.len());
    let mut end = 0;
    for range in found.into_iter().filter(|range| !range.is_empty()) {
        // What overlaps is hidden as one.
        if range.start >= end {
            shown.push_str(text.get(end..range.start).unwrap_or_default());
            shown.push_str(HIDDEN);
        }
        end = end.max(range.end);
    }
    shown.push_str(text.get(end..).unwrap_or_default());
    shown
}

/// The length of what `text` begins with, as long as `belongs`.
fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// `hf_...` and `sk-...`.
fn tokens(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (prefix, joints) in [("hf_", ""), ("sk-", "-_")] {
        for (at, _) in text.match_indices(prefix) {
            let (before, after) = text.split_at_checked(at + prefix.len()).unwrap_or_default();
            // `disk-` is no `sk-`.
            let inside =
                before.strip_suffix(prefix).is_some_and(|b| b.ends_with(|c: char| c.is_alphanumeric()));
            let length = prefix.len() + run(after, |c| c.is_ascii_alphanumeric() || joints.contains(c));
            if !inside && length >= TOKEN {
                found.push(at..at + length);
            }
        }
    }
    found
}

/// What follows `Bearer`.
fn bearers(text: &str) -> Vec<Range<usize>> {
    const WORD: &str = "bearer ";
    let lower = text.to_ascii_lowercase();
    let found = lower.match_indices(WORD).map(|(at, _)| {
        let after = text.get(at + WORD.len()..).unwrap_or_default();
        let start = at + WORD.len() + run(after, |c| c == ' ');
        let token = text.get(start..).unwrap_or_default();
        start..start + run(token, |c| c.is_ascii_alphanumeric() || "-._~+/=".contains(c))
    });
    found.collect()
}

/// `user:password` of `://user:password@host`.
fn users(text: &str) -> Vec<Range<usize>> {
    let found = text.match_indices("://").filter_map(|(at, mark)| {
        let start = at + mark.len();
        let rest = text.get(start..)?;
        let authority = rest.get(..run(rest, |c| !c.is_whitespace() && !"/?#\"'<>`".contains(c)))?;
        authority.rfind('@').map(|length| start..start + length)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_the_environment_is_told_and_short_words_stay() {
        let mask = Mask::of([
            "hunter2",
            "on",
            "12345",
            "a\"b c\"d",
            "-----BEGIN KEY-----\nMIIEabc\n",
            "hunter2-long",
        ]);
        for (said, told) in [
            ("my password is hunter2", "my password is ***"),
            ("hunter2hunter2,hunter2", "******,***"),
            ("hunter2-long is one", "*** is one"),
            ("turned on: 12345", "turned on: 12345"),
            ("the key: MIIEabc", "the key: ***"),
            ("-----BEGIN KEY-----", "***"),
            (r#"{"v": "a\"b c\"d"}"#, r#"{"v": "***"}"#),
            (r#"v=a"b c"d"#, "v=***"),
            ("nothing of it", "nothing of it"),
            ("", ""),
        ] {
            assert_eq!(mask.hide(said), told);
        }
        assert_eq!(Mask::of(["abcdefgh", "fghijklm"]).hide("abcdefghijklm."), "***.", "overlapping");
        assert_eq!(format!("{mask:?}"), "***");
    }

    #[test]
    fn what_looks_like_a_secret_is_hidden_whoever_it_comes_from() {
        let mask = Mask::default();
        for (said, told) in [
            ("token hf_AbCdEfGhIjKlMnOpQrStUvWx, bad", "token ***, bad"),
            ("hf_hub_download failed for hf_transfer", "hf_hub_download failed for hf_transfer"),
            ("key=sk-proj-abc_defghijklmnop", "key=***"),
            ("on disk-of-the-first-machine-here", "on disk-of-the-first-machine-here"),
            ("sk-short", "sk-short"),
            ("Authorization: Bearer abc.def-1=", "Authorization: Bearer ***"),
            ("{'authorization': 'bearer  xyz'}", "{'authorization': 'bearer  ***'}"),
            ("größe Bearer ü", "größe Bearer ü"),
            ("GET https://me:pa@ss@example.org/x?a=b@c", "GET https://***@example.org/x?a=b@c"),
            ("nats://u:p@a:1,nats://u:p@b:2", "nats://***@a:1,nats://***@b:2"),
            ("http://127.0.0.1:80/ and me@example.org", "http://127.0.0.1:80/ and me@example.org"),
        ] {
            assert_eq!(mask.hide(said), told);
        }
    }

    #[test]
    fn a_value_that_was_cut_off_does_not_show_its_beginning() {
        let mask = Mask::of(["correct horse battery"]);
        assert_eq!(mask.hide_cut("it is: correct horse ba"), "it is: ***");
        assert_eq!(mask.hide_cut("it is: correc"), "it is: ***");
        assert_eq!(mask.hide("it is correct"), "it is correct");
    }
}
