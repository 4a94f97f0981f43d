//! A folder in Hugging Face's layout: `config.json` and safetensors, as vLLM reads them
//! (<https://github.com/huggingface/safetensors#format>).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::arch::Arch;
use crate::error::FootprintError;
use crate::estimate::Footprint;
use crate::open::open;

/// The format's own limit of a header.
const HEADER: u64 = 100_000_000;
/// No `config.json` and no index is larger.
const JSON: u64 = 64 << 20;

/// What the model in this folder takes.
///
/// # Errors
/// When a file cannot be read, there are no safetensors, or a header contradicts itself.
pub fn of_folder(folder: &Path) -> Result<Footprint, FootprintError> {
    let path = folder.join("config.json");
    let config: Config = json(&path)?;
    let mut weights = 0_u64;
    for file in files(folder)? {
        weights = weights.saturating_add(tensors(&file)?);
    }
    Ok(config.arch().footprint(weights))
}

/// The files that are loaded: those of the index, since some folders hold the weights twice; else all.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>, FootprintError> {
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        let Index { weight_map } = json(&index)?;
        return weight_map
            .into_values()
            .map(|name| match Path::new(&name).file_name() {
                Some(only) if only == name.as_str() => Ok(folder.join(only)),
                _ => Err(FootprintError::malformed(&index, "field weight_map names a file elsewhere")),
            })
            .collect();
    }
    let entries = std::fs::read_dir(folder).map_err(FootprintError::read(folder))?;
    let found: BTreeSet<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    if found.is_empty() {
        return Err(FootprintError::malformed(folder, "there is no .safetensors file in it"));
    }
    Ok(found)
}

/// Bytes of the tensors in a file.
fn tensors(path: &Path) -> Result<u64, FootprintError> {
    let (file, size) = open(path)?;
    let mut reader = BufReader::new(file);
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(FootprintError::read(path))?;
    let length = u64::from_le_bytes(length);
    let left = size.saturating_sub(8);
    if length > left.min(HEADER) {
        return Err(FootprintError::malformed(
            path,
            format!("its header is to be {length} bytes long, of {left}"),
        ));
    }
    let End(end) = serde_json::from_reader(reader.take(length)).map_err(|error| {
        FootprintError::malformed(path, format!("its header is no JSON of tensors ({error})"))
    })?;
    let data = left - length;
    if end > data {
        return Err(FootprintError::malformed(
            path,
            format!("field data_offsets ends at {end}, and there are {data} bytes"),
        ));
    }
    Ok(end)
}

/// Where the last tensor ends. A header may have a hundred thousand of them: none is kept.
struct End(u64);

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = End;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("tensors by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<End, A::Error> {
                let mut end = 0;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let Tensor { data_offsets: (_, to) } = map.next_value()?;
                    end = to.max(end);
                }
                Ok(End(end))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The parts of `config.json` that matter. Models that see pictures have those of their text within.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    text_config: Option<Box<Config>>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    vocab_size: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    kv_lora_rank: Option<u64>,
    qk_rope_head_dim: Option<u64>,
}

impl Config {
    fn arch(&self) -> Arch {
        let text = self.text_config.as_deref().unwrap_or(self);
        let or = |mine: Option<u64>, whole: Option<u64>| mine.or(whole).unwrap_or(0);
        Arch {
            layers: or(text.num_hidden_layers, self.num_hidden_layers),
            heads: or(text.num_attention_heads, self.num_attention_heads),
            kv_heads: text.num_key_value_heads.into_iter().collect(),
            width: or(text.hidden_size, self.hidden_size),
            inner: or(text.intermediate_size, self.intermediate_size),
            vocabulary: or(text.vocab_size, self.vocab_size),
            key: text.head_dim,
            value: text.head_dim,
            // vLLM keeps the whole of every layer's keys and values unless its hybrid cache manager is on, which
            // depends on the model: the larger of the two is right for both.
            window: 0,
            window_every: 0,
            state: 0,
            latent: text.kv_lora_rank.map(|rank| rank.saturating_add(text.qk_rope_head_dim.unwrap_or(0))),
            trained_context: text.max_position_embeddings.or(self.max_position_embeddings),
        }
    }
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, FootprintError> {
    let (file, _) = open(path)?;
    serde_json::from_reader(BufReader::new(file).take(JSON))
        .map_err(|error| FootprintError::malformed(path, format!("it is no JSON of a model ({error})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safetensors(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    const CONFIG: &[u8] = br#"{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "hidden_size": 64, "intermediate_size": 128, "vocab_size": 320, "max_position_embeddings": 2048}"#;
    const ONE: &str =
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;

    #[test]
    fn weights_are_what_the_header_gives_to_tensors() {
        let folder = folder(&[("config.json", CONFIG), ("model.safetensors", &safetensors(ONE, 16))]);
        let model = of_folder(folder.path()).unwrap();
        assert_eq!((model.weights, model.trained_context), (16, Some(2048)));
        assert_eq!(model.cache_per_token, 4 * 2 * 16 * 2);
    }

    #[test]
    fn of_weights_that_are_there_twice_the_index_names_those_that_count() {
        let index = br#"{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}"#;
        let folder = folder(&[
            ("config.json", CONFIG),
            ("model.safetensors.index.json", index),
            ("x.safetensors", &safetensors(ONE, 16)),
            ("consolidated.safetensors", &safetensors(ONE, 16)),
        ]);
        assert_eq!(of_folder(folder.path()).unwrap().weights, 16);
    }

    #[test]
    fn an_index_does_not_lead_out_of_its_folder() {
        let index = br#"{"weight_map": {"a": "../secret.safetensors"}}"#;
        let folder = folder(&[("config.json", CONFIG), ("model.safetensors.index.json", index)]);
        let error = of_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("weight_map names a file elsewhere"), "{error}");
    }

    #[test]
    fn a_model_that_sees_has_its_text_within() {
        let config =
            br#"{"text_config": {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 8}}"#;
        let folder = folder(&[("config.json", config), ("model.safetensors", &safetensors(ONE, 16))]);
        assert_eq!(of_folder(folder.path()).unwrap().cache_per_token, 2 * 16 * 2);
    }

    #[test]
    fn a_file_that_was_cut_is_named_with_the_field() {
        for (bytes, field) in [
            (safetensors(ONE, 15), "data_offsets ends at 16"),
            (u64::MAX.to_le_bytes().to_vec(), "header is to be"),
            (safetensors("{\"a\":1}", 0), "no JSON of tensors"),
            (vec![1, 2], "ends within its header"),
        ] {
            let folder = folder(&[("config.json", CONFIG), ("model.safetensors", &bytes)]);
            let error = of_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
