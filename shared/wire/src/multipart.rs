//! Forms with files (`multipart/form-data`, RFC 7578), read where they lie: every part is a range of the body, and no
//! byte of it is copied.
//!
//! It is strict: what one server reads and another does not (line ends of a bare LF, parts without a name) is refused,
//! so that gateway and engine never see two different forms.

use std::ops::Range;

use thiserror::Error;

/// No form of an inference request has so many.
const MOST_PARTS: usize = 256;
/// Headers of one part.
const MOST_HEADERS: usize = 16 * 1024;

/// A field of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Whether it is a file.
    pub file: bool,
    /// Where its value lies in the body.
    pub value: Range<usize>,
}

/// Why a body is no form; the texts are for the client.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormError {
    /// The header names none.
    #[error(
        "the content-type names no boundary of 1 to 70 characters; let your HTTP client write this header itself"
    )]
    Boundary,
    /// Nothing begins with the boundary.
    #[error("the body does not begin with the boundary that its content-type names")]
    Begin,
    /// A part's headers are no headers.
    #[error("the headers of part {part} cannot be read, or are longer than {MOST_HEADERS} bytes")]
    Headers {
        /// Which, from 1.
        part: usize,
    },
    /// A part has no name.
    #[error("part {part} has no name: it needs `content-disposition: form-data; name=\"...\"`")]
    Name {
        /// Which, from 1.
        part: usize,
    },
    /// A part does not end.
    #[error("the form ends within the field `{name}`")]
    End {
        /// Its name.
        name: String,
    },
    /// More than anybody needs.
    #[error("the form has more than {MOST_PARTS} fields")]
    Many,
}

impl FormError {
    /// The field at fault, where it has a name.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::End { name } => Some(name),
            _ => None,
        }
    }
}

/// Whether a `Content-Type` is that of a form.
#[must_use]
pub fn is_form(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("multipart/form-data")
}

/// The fields of a form, in their order.
///
/// # Errors
/// When the body is not a complete form with the boundary that `content_type` names.
pub fn parts(content_type: &str, body: &[u8]) -> Result<Vec<Part>, FormError> {
    let boundary = parameter(content_type, "boundary").ok_or(FormError::Boundary)?;
    let fits = (1..=70).contains(&boundary.len()) && boundary.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !fits {
        return Err(FormError::Boundary);
    }
    let delimiter = format!("\r\n--{boundary}");
    let finder = memchr::memmem::Finder::new(delimiter.as_bytes());
    // The first one stands at the very beginning; some clients put a line end before it.
    let bare = delimiter.as_bytes().get(2..).unwrap_or_default();
    let mut at = if body.starts_with(bare) {
        bare.len()
    } else if body.starts_with(delimiter.as_bytes()) {
        delimiter.len()
    } else {
        return Err(FormError::Begin);
    };
    let mut parts = Vec::new();
    loop {
        let rest = body.get(at..).unwrap_or_default();
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        let number = parts.len() + 1;
        if number > MOST_PARTS {
            return Err(FormError::Many);
        }
        // Spaces may pad the boundary.
        let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        let start = at + padding;
        let lines = body.get(start..).unwrap_or_default();
        if !lines.starts_with(b"\r\n") {
            return Err(if parts.is_empty() {
                FormError::Begin
            } else {
                FormError::Headers { part: number }
            });
        }
        let look = lines.get(..lines.len().min(MOST_HEADERS)).unwrap_or_default();
        let end = memchr::memmem::find(look, b"\r\n\r\n").ok_or(FormError::Headers { part: number })?;
        let headers = lines.get(..end).unwrap_or_default();
        let headers = std::str::from_utf8(headers).map_err(|_| FormError::Headers { part: number })?;
        let (name, file) = disposition(headers).ok_or(FormError::Name { part: number })?;
        let from = start + end + 4;
        let Some(len) = finder.find(body.get(from..).unwrap_or_default()) else {
            return Err(FormError::End { name });
        };
        let to = from + len;
        parts.push(Part { name, file, value: from..to });
        at = to + delimiter.len();
    }
}

/// The name that a part's headers give it, and whether it is a file.
fn disposition(headers: &str) -> Option<(String, bool)> {
    let mut found = None;
    for line in headers.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        if name.trim().eq_ignore_ascii_case("content-disposition") {
            let kind = value.split(';').next().unwrap_or_default().trim();
            if found.is_some() || !kind.eq_ignore_ascii_case("form-data") {
                return None;
            }
            let file = parameter(value, "filename").is_some() || parameter(value, "filename*").is_some();
            found = Some((parameter(value, "name")?, file));
        }
    }
    found
}

/// A parameter of a header, quoted or not; `None` also where it is given twice.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut found = None;
    let mut rest = header.split_once(';')?.1.chars().peekable();
    loop {
        let mut name = String::new();
        let mut ended = true;
        for c in rest.by_ref() {
            if c == '=' || c == ';' {
                ended = c == ';';
                break;
            }
            name.push(c);
        }
        let mut value = String::new();
        if !ended {
            while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
            if rest.next_if_eq(&'"').is_some() {
                let mut closed = false;
                while let Some(c) = rest.next() {
                    match c {
                        '"' => {
                            closed = true;
                            break;
                        }
                        '\\' if rest.peek().is_some_and(|next| matches!(next, '"' | '\\')) => {
                            value.extend(rest.next());
                        }
                        c => value.push(c),
                    }
                }
                if !closed {
                    return None;
                }
                for c in rest.by_ref() {
                    if c == ';' {
                        break;
                    }
                }
            } else {
                for c in rest.by_ref() {
                    if c == ';' {
                        break;
                    }
                    value.push(c);
                }
                value.truncate(value.trim_end().len());
            }
        }
        if name.trim().eq_ignore_ascii_case(wanted) && found.replace(value).is_some() {
            return None;
        }
        if rest.peek().is_none() {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=b0undary";

    fn form(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in fields {
            body.extend_from_slice(b"--b0undary\r\nContent-Disposition: form-data; name=\"");
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(b"\"\r\n\r\n");
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--b0undary--\r\n");
        body
    }

    #[test]
    fn a_form_of_a_common_client_is_read() {
        let body = "--xy\r\ncontent-type: text/plain\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n\
                    --xy\r\nContent-Disposition: form-data; filename=\"a;\\\"b.wav\"; name=\"file\"\r\n\r\n\r\n--xy--";
        let read = parts("Multipart/Form-Data; charset=utf-8; boundary=\"xy\"", body.as_bytes()).unwrap();
        let [model, file] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(
            (model.name.as_str(), model.file, &body.as_bytes()[model.value.clone()]),
            ("model", false, &b"m"[..])
        );
        assert_eq!(
            (file.name.as_str(), file.file, &body.as_bytes()[file.value.clone()]),
            ("file", true, &b""[..])
        );
    }

    #[test]
    fn what_servers_read_in_different_ways_is_refused() {
        let of = |body: &str| parts(TYPE, body.as_bytes()).unwrap_err();
        assert_eq!(of(""), FormError::Begin);
        assert_eq!(of("preamble\r\n--b0undary--"), FormError::Begin);
        assert_eq!(
            of("--b0undary\nContent-Disposition: form-data; name=a\n\n1\n--b0undary--"),
            FormError::Begin
        );
        assert_eq!(of("--b0undary\r\n\r\n\r\n1\r\n--b0undary--"), FormError::Name { part: 1 });
        let head = "--b0undary\r\nContent-Disposition: form-data; name=a";
        assert_eq!(of(&format!("{head}\r\n\r\nsecret")), FormError::End { name: "a".into() });
        assert_eq!(of(&format!("{head}; name=b\r\n\r\n1\r\n--b0undary--")), FormError::Name { part: 1 });
        assert_eq!(of(&format!("{head}\r\n\r\n1\r\n--b0undaryx\r\n")), FormError::Headers { part: 2 });
        assert_eq!(of(&format!("{head}{}", "x".repeat(MOST_HEADERS))), FormError::Headers { part: 1 });
        let many = form(&vec![("a", &b""[..]); MOST_PARTS + 1]);
        assert_eq!(parts(TYPE, &many).unwrap_err(), FormError::Many);
        for kind in
            ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"x"]
        {
            assert_eq!(parts(kind, b"").unwrap_err(), FormError::Boundary, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn every_value_is_found_where_it_lies(
            fields in prop::collection::vec(("[a-z_\\[\\]]{1,9}", prop::collection::vec(any::<u8>(), 0..60)), 0..6),
        ) {
            prop_assume!(fields.iter().all(|(_, value)| memchr::memmem::find(value, b"--b0undary").is_none()));
            let fields: Vec<(&str, &[u8])> = fields.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let body = form(&fields);
            let read = parts(TYPE, &body).unwrap();
            let found: Vec<(&str, &[u8])> =
                read.iter().map(|part| (part.name.as_str(), &body[part.value.clone()])).collect();
            prop_assert_eq!(found, fields);
        }

        #[test]
        fn a_form_cut_short_is_never_read_as_a_whole(cut in 0_usize..500) {
            let body = form(&[("model", b"m"), ("file", &[b'\r'; 40]), ("stream", b"true")]);
            let whole = body.len() - 2;
            prop_assume!(cut < whole);
            prop_assert!(parts(TYPE, &body[..cut]).is_err());
        }

        #[test]
        fn any_bytes_are_survived(
            kind in "multipart/form-data;[ -~]{0,40}",
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = parts(&kind, &body);
            let mut framed = b"--b0undary\r\n".to_vec();
            framed.extend_from_slice(&body);
            if let Ok(read) = parts(TYPE, &framed) {
                prop_assert!(read.iter().all(|part| framed.get(part.value.clone()).is_some()));
            }
        }
    }
}
