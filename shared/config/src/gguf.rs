//! `berth up --model FILE.gguf`: a catalog entry from nothing but the file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use berth_footprint::{FootprintError, Use, of_gguf};
use berth_wire::{ContainerSpec, Driver, EngineKind, EngineSpec, ModelId, ModelSpec};
use thiserror::Error;

use crate::env;
use crate::settings::{Config, HostConfig};
use crate::template::{self, Inputs};

/// Tokens of context that a file is served with: enough for a conversation, and within the memory estimate.
const CONTEXT: u32 = 8192;

/// A model file that cannot be served.
#[derive(Debug, Error)]
pub enum ModelFileError {
    /// It cannot be read.
    #[error("cannot read the model {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is of another format.
    #[error(
        "{} is not a GGUF file (it does not begin with `GGUF`); --model takes a model in llama.cpp's format, \
         which usually ends in .gguf, and was perhaps not downloaded whole",
        path.display()
    )]
    NotGguf {
        /// Which file.
        path: PathBuf,
    },
    /// Its header contradicts itself.
    #[error(transparent)]
    Header(#[from] FootprintError),
    /// Two models would have one name.
    #[error("there is already a model named `{id}`; rename {}", path.display())]
    Taken {
        /// The name.
        id: String,
        /// The second file.
        path: PathBuf,
    },
    /// Its name gives no model id.
    #[error("the name of {} is not UTF-8, or holds a brace or a colon; rename it", path.display())]
    Name {
        /// Which file.
        path: PathBuf,
    },
}

/// How a file is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LlamaServer {
    /// By the program found here.
    Program(PathBuf),
    /// By the Docker image; `cuda`: the one for NVIDIA GPUs.
    Image {
        /// This machine has an NVIDIA GPU.
        cuda: bool,
    },
}

impl LlamaServer {
    /// `llama-server` on `PATH`, else the Docker image.
    #[must_use]
    pub fn detect() -> Self {
        env::find_program("llama-server")
            .map_or_else(|| Self::Image { cuda: Path::new("/dev/nvidiactl").exists() }, Self::Program)
    }
}

impl Config {
    /// Adds the model of a GGUF file to the catalog.
    ///
    /// # Errors
    /// As [`Config::gguf_model`], and when its name is taken.
    pub fn add_gguf(&mut self, path: &Path, server: &LlamaServer) -> Result<&ModelSpec, ModelFileError> {
        let model = Self::gguf_model(path, server)?;
        let id = model.id.as_str();
        if self.models.iter().any(|m| m.names().any(|name| name == id)) {
            return Err(ModelFileError::Taken { id: id.into(), path: path.to_owned() });
        }
        self.models.push(model);
        self.models.last().ok_or_else(|| ModelFileError::Name { path: path.to_owned() })
    }

    /// A catalog entry for a GGUF file: named after it, served by llama.cpp's server with 8192 tokens of context,
    /// its memory as its header says (all parts of a split one).
    ///
    /// # Errors
    /// When the file cannot be read, is no GGUF file or a damaged one, or has a name that gives no id.
    pub fn gguf_model(path: &Path, server: &LlamaServer) -> Result<ModelSpec, ModelFileError> {
        let read = |source| ModelFileError::Read { path: path.to_owned(), source };
        let path = &env::expand_home(&path.to_string_lossy());
        let mut magic = [0_u8; 4];
        let mut file = File::open(path).map_err(read)?;
        match file.read_exact(&mut magic) {
            Ok(()) if &magic == b"GGUF" => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(read(error)),
            _ => return Err(ModelFileError::NotGguf { path: path.clone() }),
        }
        let path = path.canonicalize().map_err(read)?;
        let bad_name = || ModelFileError::Name { path: path.clone() };
        let file_name = path.file_name().and_then(|name| name.to_str()).ok_or_else(bad_name)?;
        let folder = path.parent().and_then(Path::to_str).ok_or_else(bad_name)?;
        let stem = file_name.strip_suffix(".gguf").unwrap_or(file_name);
        let id = without_part(stem);
        if id.trim().is_empty() || file_name.contains(['{', '}']) || folder.contains(':') {
            return Err(bad_name());
        }
        let on_gpu = Path::new("/dev/nvidiactl").exists();
        let memory = of_gguf(&path)?.total(Use::llama(Some(u64::from(CONTEXT)), on_gpu));
        let (driver, image, command, volumes, model_path) = match server {
            LlamaServer::Program(program) => (
                Driver::Process,
                None,
                vec![program.display().to_string()],
                Vec::new(),
                path.display().to_string(),
            ),
            LlamaServer::Image { cuda } => {
                let image = if *cuda { template::LLAMA_IMAGE_CUDA } else { template::LLAMA_IMAGE };
                let volumes = vec![format!("{folder}:/models:ro")];
                (Driver::Docker, Some(image.to_owned()), Vec::new(), volumes, format!("/models/{file_name}"))
            }
        };
        let concurrency = template::default_concurrency(EngineKind::LlamaCpp);
        let inputs = Inputs {
            driver,
            id,
            served_name: id,
            concurrency,
            context: Some(CONTEXT),
            accelerators: 1,
            own_words: &[],
        };
        let template = template::of(EngineKind::LlamaCpp, inputs);
        Ok(ModelSpec {
            id: ModelId::from(id),
            aliases: Vec::new(),
            engine: EngineSpec {
                kind: EngineKind::LlamaCpp,
                driver,
                image,
                command,
                args: [template.args, vec!["--model".into(), model_path]].concat(),
                env: Vec::new(),
                volumes,
                port: template.port,
                health_path: template.health_path.into(),
                served_name: id.into(),
                routes: None,
                container: ContainerSpec { read_only: driver == Driver::Docker, ..ContainerSpec::default() },
                start_timeout: template.start_timeout,
                stop_grace: HostConfig::default().stop_grace,
                sleep: None,
            },
            memory: Some(memory),
            accelerators: 1,
            concurrency,
            context: Some(CONTEXT),
            idle_ttl: None,
            asleep_ttl: None,
            pin: false,
            replicas: None,
            labels: Vec::new(),
            adapters: Vec::new(),
            max_adapters: None,
            keep_context: None,
            leases_keep_context: false,
            silence: berth_wire::Silence::default(),
        })
    }
}

/// `name-00001-of-00003` is the first of three parts of `name`.
fn without_part(stem: &str) -> &str {
    let first_of = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (id, first) = rest.rsplit_once('-')?;
        let is_count = count.len() == 5 && count.bytes().all(|b| b.is_ascii_digit());
        (is_count && first == "00001").then_some(id)
    };
    first_of().unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_of_a_split_model_names_the_whole() {
        assert_eq!(without_part("big-00001-of-00003"), "big");
        assert_eq!(without_part("big-00002-of-00003"), "big-00002-of-00003");
        assert_eq!(without_part("qwen2.5-0.5b-q4_k_m"), "qwen2.5-0.5b-q4_k_m");
    }
}
