//! Gives the answers of an engine that knows one name alone the name of the adapter that was asked.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};

/// Replaces the member `"model":"served"` of an answer, however it is cut into pieces. Within a string it cannot be: there
/// its quotes would be escaped.
#[derive(Debug)]
pub(crate) struct Rename {
    from: Vec<u8>,
    to: Vec<u8>,
    /// The beginning of what may become one.
    held: BytesMut,
}

impl Rename {
    pub(crate) fn new(served: &str, name: &str) -> Self {
        let member = |name: &str| format!("\"model\":{}", serde_json::Value::from(name)).into_bytes();
        Self { from: member(served), to: member(name), held: BytesMut::new() }
    }

    /// What can be passed on once this has come.
    fn push(&mut self, piece: &[u8]) -> Bytes {
        self.held.extend_from_slice(piece);
        let mut out = BytesMut::with_capacity(self.held.len());
        while let Some(at) = find(&self.held, &self.from) {
            out.extend_from_slice(&self.held.split_to(at));
            out.extend_from_slice(&self.to);
            let _ = self.held.split_to(self.from.len());
        }
        let longest = self.held.len().min(self.from.len().saturating_sub(1));
        let begun = (1..=longest)
            .rev()
            .find(|n| self.held.get(self.held.len() - n..).is_some_and(|end| self.from.starts_with(end)));
        let whole = self.held.len() - begun.unwrap_or(0);
        out.extend_from_slice(&self.held.split_to(whole));
        out.freeze()
    }

    /// The answer under its name; what is held back is passed on at its end, and before an error.
    pub(crate) fn over<E: 'static>(
        self,
        chunks: impl Stream<Item = Result<Bytes, E>> + 'static,
    ) -> impl Stream<Item = Result<Bytes, E>> + 'static {
        let ends = chunks.map(Some).chain(futures::stream::iter([None]));
        let renamed = ends.scan(self, |rename, next| {
            let mut out = Vec::with_capacity(2);
            match next {
                Some(Ok(piece)) => out.push(Ok(rename.push(&piece))),
                Some(Err(error)) => {
                    out.push(Ok(rename.held.split().freeze()));
                    out.push(Err(error));
                }
                None => out.push(Ok(rename.held.split().freeze())),
            }
            std::future::ready(Some(futures::stream::iter(out)))
        });
        renamed
            .flatten()
            .filter(|piece| std::future::ready(piece.as_ref().map_or(true, |piece| !piece.is_empty())))
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn renamed(text: &str, cuts: &[usize]) -> String {
        let mut pieces: Vec<Result<Bytes, ()>> = Vec::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([text.len()]) {
            let to = cut.clamp(from, text.len());
            pieces.push(Ok(Bytes::copy_from_slice(&text.as_bytes()[from..to])));
            from = to;
        }
        let whole = Rename::new("base", "sql").over(futures::stream::iter(pieces)).collect::<Vec<_>>();
        let whole = whole.now_or_never().unwrap().into_iter().map(Result::unwrap);
        String::from_utf8(whole.flatten().collect()).unwrap()
    }

    #[test]
    fn only_the_member_is_renamed() {
        let text = r#"data: {"model":"base","content":"\"model\":\"base\" base","x":"base"}"#;
        let wanted = r#"data: {"model":"sql","content":"\"model\":\"base\" base","x":"base"}"#;
        assert_eq!(renamed(text, &[]), wanted);
        assert_eq!(renamed("\"model\":\"ba", &[]), "\"model\":\"ba");
    }

    proptest! {
        #[test]
        fn however_it_is_cut(cuts in prop::collection::vec(0usize..90, 0..12)) {
            let text = r#"{"model":"base","a":"\"model\":"}{"model":"model","model":"base""model":"base"}"#;
            let mut cuts = cuts;
            cuts.sort_unstable();
            prop_assert_eq!(renamed(text, &cuts), text.replace("\"model\":\"base\"", "\"model\":\"sql\""));
        }
    }
}
