//! Values as people write them: `"90s"`, `"16GiB"`, lists. Their errors say how to write them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::spanned::Spanned;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A length of time, as in `"90s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

const SPAN_HELP: &str = "write a duration with its unit, as in \"90s\", \"15m\" or \"1h 30m\"";

fn parse_span<E: Error>(text: &str) -> Result<Duration, E> {
    match humantime::parse_duration(text.trim()) {
        Ok(span) if span > Duration::from_secs(365 * 24 * 3600) => {
            Err(E::custom("durations above a year are not taken\nwrite a shorter one"))
        }
        Ok(span) => Ok(span),
        Err(_) => Err(E::custom(format!("`{text}` is not a duration\n{SPAN_HELP}"))),
    }
}

impl Span {
    /// From text.
    pub(crate) fn parse<E: Error>(text: &str) -> Result<Self, E> {
        parse_span(text).map(Self)
    }
}

fn no_unit<E: Error>(number: impl fmt::Display, help: &str) -> E {
    E::custom(format!("`{number}` lacks its unit\n{help}"))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"90s\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                parse_span(text).map(Span)
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Span, E> {
                Err(no_unit(number, SPAN_HELP))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Span, E> {
                Err(no_unit(number, SPAN_HELP))
            }
        }
        d.deserialize_any(Text)
    }
}

/// An idle time to live: a duration, or `"never"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ttl(pub(crate) Option<Duration>);

const TTL_HELP: &str = "write a duration with its unit, as in \"15m\", or \"never\"";

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Ttl;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"15m\", or \"never\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Ttl, E> {
                if text.trim() == "never" {
                    Ok(Ttl(None))
                } else {
                    parse_span(text).map(|span| Ttl(Some(span)))
                }
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Ttl, E> {
                Err(no_unit(number, TTL_HELP))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Ttl, E> {
                Err(no_unit(number, TTL_HELP))
            }
        }
        d.deserialize_any(Text)
    }
}

/// A number of bytes, as in `"16GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const SIZE_HELP: &str = "write a size with its unit, as in \"16GiB\" or \"500MB\"";

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"16GiB\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                let text = text.trim();
                if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
                    return Err(no_unit(text, SIZE_HELP));
                }
                text.parse::<bytesize::ByteSize>()
                    .map(|size| Size(size.as_u64()))
                    .map_err(|_| E::custom(format!("`{text}` is not a size\n{SIZE_HELP}")))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Size, E> {
                Err(no_unit(number, SIZE_HELP))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Size, E> {
                Err(no_unit(number, SIZE_HELP))
            }
        }
        d.deserialize_any(Text)
    }
}

/// Before the list as it should have been written.
pub(crate) const LIST_HELP: &str = "write it as ";

/// A list of strings, each with its place in the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words(pub(crate) Vec<Spanned<String>>);

impl Words {
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(|word| word.get_ref().clone()).collect()
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Words, E> {
                let words: Vec<String> = text.split_whitespace().map(|word| format!("{word:?}")).collect();
                Err(E::custom(format!("this must be a list\n{LIST_HELP}[{}]", words.join(", "))))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        d.deserialize_any(List)
    }
}

/// One string or a list of them.
#[derive(Debug, Clone)]
pub(crate) struct OneOrMany(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = seq.next_element()? {
                    all.push(text);
                }
                Ok(OneOrMany(all))
            }
        }
        d.deserialize_any(Any)
    }
}

/// Reads an address to listen on: `127.0.0.1:8421`, `[::1]:8421`, `localhost:8421`, `8421` (loopback) or `:8421`
/// (every interface).
///
/// # Errors
/// A sentence that says how to write it.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let (host, port) = text.rsplit_once(':').unwrap_or(("localhost", text));
    let parsed = match (host, port.parse::<u16>()) {
        ("localhost", Ok(port)) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        ("" | "*", Ok(port)) => Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        _ => text.parse().ok(),
    };
    parsed.ok_or_else(|| {
        format!("`{text}` is not an address to listen on; write it as in 127.0.0.1:8421, or 0.0.0.0:8421 for every interface")
    })
}

/// Reads a duration as the configuration writes it: `90s`, `15m`, `1h 30m`.
///
/// # Errors
/// A sentence that says how to write it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|_| format!("`{text}` is not a duration; write it as in 90s or 15m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, address) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("localhost:80", "127.0.0.1:80"),
            ("8421", "127.0.0.1:8421"),
            (":8421", "0.0.0.0:8421"),
            ("[::1]:8421", "[::1]:8421"),
        ] {
            assert_eq!(parse_listen(text).unwrap(), address.parse().unwrap(), "{text}");
        }
        for text in ["", "example.org:80", "127.0.0.1", "1:2:3", "127.0.0.1:99999"] {
            assert!(parse_listen(text).unwrap_err().contains("127.0.0.1:8421"), "{text}");
        }
    }
}
