//! GGUF, llama.cpp's format: metadata and the places of tensors stand before the weights
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::arch::Arch;
use crate::error::FootprintError;
use crate::estimate::Footprint;
use crate::open::open;

/// The longest string that is looked at; longer ones are passed over.
const TEXT: u64 = 4096;
/// The longest list of numbers that is kept: one for each layer.
const LIST: u64 = 4096;
/// ggml's own limit.
const DIMENSIONS: u32 = 4;
const ALIGNMENT: u64 = 32;

/// What the model in this file takes; of a split model the file is its first part, and its other parts are beside it.
///
/// # Errors
/// When a part cannot be read, is no GGUF file, or contradicts itself.
pub fn of_gguf(path: &Path) -> Result<Footprint, FootprintError> {
    let header = Header::read(path)?;
    let count = header.number("split.count").unwrap_or(1);
    let parts = parts_of(path, count)
        .ok_or_else(|| FootprintError::malformed(path, format!("field split.count is {count}")))?;
    let mut weights = header.weights;
    for part in parts.iter().filter(|part| part.as_path() != path) {
        weights = weights.saturating_add(Header::read(part)?.weights);
    }
    Ok(header.arch().footprint(weights))
}

/// The files of a model of `count` parts whose first is `path`, as llama.cpp names them; `None`: that is no first part.
#[must_use]
pub fn parts_of(path: &Path, count: u64) -> Option<Vec<PathBuf>> {
    if count <= 1 {
        return Some(vec![path.to_owned()]);
    }
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-00001-of-{count:05}.gguf"))?;
    (count <= 99_999).then(|| {
        (1..=count).map(|n| path.with_file_name(format!("{stem}-{n:05}-of-{count:05}.gguf"))).collect()
    })
}

/// A value of the metadata, as far as it is of use.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
    Numbers(Vec<u64>),
    /// A list of something else, of which the length tells.
    Items(u64),
    Other,
}

#[derive(Debug, Default)]
struct Header {
    values: HashMap<String, Value>,
    /// Bytes behind the header.
    weights: u64,
}

impl Header {
    fn read(path: &Path) -> Result<Self, FootprintError> {
        let (file, size) = open(path)?;
        let mut reader = Reader { path, inner: BufReader::new(file), at: 0, size };
        let header = reader.header()?;
        Ok(header)
    }

    fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Number(number) => Some(*number),
            // What differs by layer counts as its largest.
            Value::Numbers(numbers) => numbers.iter().copied().max(),
            _ => None,
        }
    }

    fn arch(&self) -> Arch {
        let name = match self.values.get("general.architecture") {
            Some(Value::Text(name)) => name.as_str(),
            _ => "",
        };
        let key = |rest: &str| format!("{name}.{rest}");
        let number = |rest: &str| self.number(&key(rest));
        let kv_heads = match self.values.get(&key("attention.head_count_kv")) {
            Some(Value::Number(heads)) => vec![*heads],
            Some(Value::Numbers(heads)) => heads.clone(),
            _ => Vec::new(),
        };
        let vocabulary = match self.values.get("tokenizer.ggml.tokens") {
            Some(Value::Items(words)) => *words,
            _ => number("vocab_size").unwrap_or(0),
        };
        let state = number("ssm.inner_size").unwrap_or(0).saturating_mul(
            number("ssm.state_size").unwrap_or(0).saturating_add(number("ssm.conv_kernel").unwrap_or(0)),
        );
        Arch {
            layers: number("block_count").unwrap_or(0),
            heads: number("attention.head_count").unwrap_or(0),
            kv_heads,
            width: number("embedding_length").unwrap_or(0),
            inner: number("feed_forward_length").unwrap_or(0),
            vocabulary,
            key: number("attention.key_length"),
            value: number("attention.value_length"),
            window: number("attention.sliding_window").unwrap_or(0),
            window_every: number("attention.sliding_window_pattern").unwrap_or_else(|| window_every(name)),
            state,
            latent: None,
            trained_context: number("context_length"),
        }
    }
}

/// Every so-manieth layer attends to all, of architectures whose files do not say (llama.cpp's `llama-model.cpp`).
fn window_every(architecture: &str) -> u64 {
    match architecture {
        "gemma2" | "gpt-oss" => 2,
        "gemma3n" => 5,
        "gemma3" => 6,
        "cohere2" => 4,
        _ => 0,
    }
}

struct Reader<'a> {
    path: &'a Path,
    inner: BufReader<File>,
    at: u64,
    size: u64,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<Header, FootprintError> {
        if self.bytes::<4>().ok() != Some(*b"GGUF") {
            return Err(FootprintError::Other { path: self.path.to_owned(), wanted: "GGUF" });
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            // Of the other byte order, it reads as a very large number.
            return Err(
                self.malformed(format!("it is of version {version} of the format; 2 and 3 are known"))
            );
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        // The least that a pair and a tensor take in the file.
        self.plausible("the number of metadata fields", pairs, 8 + 4 + 1)?;
        self.plausible("the number of tensors", tensors, 8 + 4 + 8 + 4 + 8)?;
        let mut header = Header::default();
        for _ in 0..pairs {
            let key = self.text("a metadata field's name")?;
            let kind = self.u32()?;
            let value = self.value(kind, &key)?;
            if !matches!(value, Value::Other) {
                header.values.insert(key, value);
            }
        }
        let mut last = 0;
        for _ in 0..tensors {
            let name = self.text("a tensor's name")?;
            let dimensions = self.u32()?;
            if dimensions > DIMENSIONS {
                return Err(self.malformed(format!("tensor `{}` has {dimensions} dimensions", shown(&name))));
            }
            self.skip(u64::from(dimensions) * 8 + 4)?;
            last = self.u64()?.max(last);
        }
        let alignment = header.number("general.alignment").unwrap_or(ALIGNMENT).max(1);
        let begins = self.at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        header.weights = self.size.saturating_sub(begins);
        if tensors > 0 && last >= header.weights {
            return Err(self.malformed(format!(
                "a tensor begins {last} bytes into the weights, of which there are {}",
                header.weights
            )));
        }
        Ok(header)
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, FootprintError> {
        Ok(match kind {
            8 => {
                let len = self.length("a text", 1)?;
                if len > TEXT {
                    self.skip(len)?;
                    return Ok(Value::Other);
                }
                String::from_utf8(self.take(len)?).map_or(Value::Other, Value::Text)
            }
            9 => {
                let (of, len) = (self.u32()?, self.u64()?);
                self.list(of, len, key)?
            }
            _ => self.scalar(kind, key)?.map_or(Value::Other, Value::Number),
        })
    }

    fn list(&mut self, of: u32, len: u64, key: &str) -> Result<Value, FootprintError> {
        let malformed = |what: &str| format!("field {} is a list of {what}", shown(key));
        match of {
            8 => {
                self.plausible("the length of a list of texts", len, 8)?;
                for _ in 0..len {
                    let text = self.length("a text", 1)?;
                    self.skip(text)?;
                }
                Ok(Value::Items(len))
            }
            9 => Err(self.malformed(malformed("lists"))),
            _ => {
                let width =
                    width(of).ok_or_else(|| self.malformed(malformed(&format!("the unknown type {of}"))))?;
                self.plausible("the length of a list", len, width)?;
                if len > LIST {
                    self.skip(len.saturating_mul(width))?;
                    return Ok(Value::Items(len));
                }
                let mut numbers = Vec::new();
                for _ in 0..len {
                    numbers.extend(self.scalar(of, key)?);
                }
                Ok(if numbers.is_empty() { Value::Items(len) } else { Value::Numbers(numbers) })
            }
        }
    }

    /// A number; `None` for one that is negative or has a fraction.
    fn scalar(&mut self, kind: u32, key: &str) -> Result<Option<u64>, FootprintError> {
        Ok(match kind {
            0 | 7 => Some(u64::from(u8::from_le_bytes(self.bytes()?))),
            1 => u64::try_from(i8::from_le_bytes(self.bytes()?)).ok(),
            2 => Some(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => u64::try_from(i16::from_le_bytes(self.bytes()?)).ok(),
            4 => Some(u64::from(self.u32()?)),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).ok(),
            10 => Some(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).ok(),
            6 | 12 => {
                self.skip(if kind == 6 { 4 } else { 8 })?;
                None
            }
            _ => return Err(self.malformed(format!("field {} has the unknown type {kind}", shown(key)))),
        })
    }

    fn text(&mut self, what: &str) -> Result<String, FootprintError> {
        let len = self.length(what, 1)?;
        if len > TEXT {
            return Err(self.malformed(format!("{what} is {len} bytes long")));
        }
        String::from_utf8(self.take(len)?).map_err(|_| self.malformed(format!("{what} is not UTF-8")))
    }

    /// A length that stands in the file, of things that take `each` bytes at least.
    fn length(&mut self, what: &str, each: u64) -> Result<u64, FootprintError> {
        let len = self.u64()?;
        self.plausible(what, len, each)?;
        Ok(len)
    }

    fn plausible(&self, what: &str, count: u64, each: u64) -> Result<(), FootprintError> {
        let left = self.size.saturating_sub(self.at);
        if count.checked_mul(each).is_none_or(|bytes| bytes > left) {
            return Err(self.malformed(format!("{what} is {count}, and only {left} bytes follow")));
        }
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, FootprintError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, FootprintError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FootprintError> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(FootprintError::read(self.path))?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// `len` has been checked against the file.
    fn take(&mut self, len: u64) -> Result<Vec<u8>, FootprintError> {
        let mut bytes = Vec::new();
        let read =
            self.inner.by_ref().take(len).read_to_end(&mut bytes).map_err(FootprintError::read(self.path))?;
        self.at += read as u64;
        if (read as u64) < len {
            return Err(self.malformed("the file ends within its header"));
        }
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<(), FootprintError> {
        self.plausible("a length", len, 1)?;
        let by = i64::try_from(len).map_err(|_| self.malformed(format!("a length is {len}")))?;
        self.inner.seek_relative(by).map_err(FootprintError::read(self.path))?;
        self.at += len;
        Ok(())
    }

    fn malformed(&self, what: impl Into<String>) -> FootprintError {
        FootprintError::malformed(self.path, what)
    }
}

/// Bytes of a number of a type.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// A name from a file, for a message.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
