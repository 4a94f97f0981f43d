//! What a model will take of memory, read from the headers of its files before it is loaded for the first time.
//!
//! What may enter: the formats' headers (GGUF, safetensors with `config.json`) and the arithmetic of weights and caches.
//! What may not: the weights themselves, anything that runs an engine, and what was measured, which always wins over
//! what is estimated here. Files come from strangers: every length is checked against the file before it is believed.

mod arch;
mod error;
mod estimate;
mod gguf;
mod hf;
mod open;

pub use error::FootprintError;
pub use estimate::{Footprint, Use};
pub use gguf::{of_gguf, parts_of};
pub use hf::of_folder;
