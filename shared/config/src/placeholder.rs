//! `{port}` and its like in `command`, `args` and `env`.
//!
//! Only a word in braces counts, so that JSON (`{"a": 1}`) and Jinja (`{{ x }}`) pass as they are. The agent fills in
//! the lower-case ones that there are.

/// Every placeholder there is. `{berth}` is the path of the berth program itself.
pub const PLACEHOLDERS: [&str; 7] = ["port", "host", "id", "memory", "concurrency", "context", "berth"];

/// The words in braces in `text`, in order.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|tail| {
        let (word, _) = tail.split_once('}')?;
        let is_word = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
        is_word.then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_order() {
        assert_eq!(words("{prot} {\"k\": 1} {{ x }} ö{} x{id}").collect::<Vec<_>>(), ["prot", "id"]);
    }
}
