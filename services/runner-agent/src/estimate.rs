//! What models that do not say what they need are to take, read from their files where this host has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use berth_actors::{Supervised, Vitals};
use berth_bus::{Entries, View};
use berth_footprint::{Footprint, FootprintError, Use, of_folder, of_gguf};
use berth_wire::{AcceleratorKind, Driver, EngineKind, Estimate, ModelSpec};
use futures::FutureExt;
use tracing::{debug, info, warn};

use crate::actor::Worker;
use crate::adapters::missing;
use crate::shared::Shared;

/// Files come and change; they are looked at again this often.
const AGAIN: Duration = Duration::from_secs(60);

/// The first snapshot waits for the first estimates at most so long.
const FIRST: Duration = Duration::from_secs(2);

/// Keeps this host's estimates current with the catalog and the files.
pub(crate) fn supervise(vitals: &Vitals, shared: &Rc<Shared>) -> Supervised<Worker> {
    let (work, observe) = (Rc::clone(shared), Rc::clone(shared));
    Worker::supervise(
        vitals,
        "agent.estimates",
        Rc::new(move || follow(Rc::clone(&work)).boxed_local()),
        Rc::new(move || serde_json::json!({ "estimates": *observe.estimates.borrow() })),
    )
}

async fn follow(shared: Rc<Shared>) {
    let mut catalog: View<ModelSpec> = View::follow(&shared.bus, "catalog");
    catalog.synced().await;
    loop {
        if renew(&shared, catalog.entries()).await {
            shared.want_snapshot();
        }
        tokio::select! {
            changed = catalog.changed() => if changed.is_none() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Reads the files of the catalog as it is now, before the first leader hears of this host: it may have jobs waiting.
pub(crate) async fn first(shared: &Shared) {
    let mut catalog: View<ModelSpec> = View::follow(&shared.bus, "catalog");
    let read = async {
        catalog.synced().await;
        renew(shared, catalog.entries()).await;
    };
    if tokio::time::timeout(FIRST, read).await.is_err() {
        debug!("the catalog or the models' files take long; the first snapshot goes without estimates");
    }
}

/// Reads the files anew; whether they say something else than before.
async fn renew(shared: &Shared, models: Entries<ModelSpec>) -> bool {
    let on_gpu = shared.devices.known().iter().any(|device| device.kind != AcceleratorKind::Ram);
    let drivers = shared.drivers.borrow().clone();
    let read = tokio::task::spawn_blocking(move || {
        let ours = models.values().filter(|model| drivers.contains(&model.engine.driver));
        let missing: BTreeSet<String> = ours.clone().filter_map(|model| missing(model)).collect();
        let estimates = ours
            .filter_map(|model| Some(Estimate { model: model.id.clone(), bytes: estimate(model, on_gpu)? }));
        (estimates.collect::<Vec<_>>(), missing)
    });
    let Ok((read, missing)) = read.await else { return false };
    let told = std::mem::replace(&mut shared.books.borrow_mut().missing, missing.clone());
    for why in missing.difference(&told) {
        warn!("{why}: put it there, or correct its `path`");
    }
    let new = *shared.estimates.borrow() != read;
    if new {
        info!(models = read.len(), "read from files what models take that do not say so");
        *shared.estimates.borrow_mut() = read;
    }
    new
}

/// Bytes that a model is to take; `None`: it says so itself, or nothing tells.
fn estimate(model: &ModelSpec, on_gpu: bool) -> Option<u64> {
    if model.memory.is_some() {
        return None;
    }
    let words = Words::of(model);
    let read = match model.engine.kind {
        EngineKind::LlamaCpp => words.llama(on_gpu),
        // What vLLM is given beyond weights and cache it makes use of: only a context that is set bounds it.
        EngineKind::Vllm => words.vllm(model.context?),
        EngineKind::Sim | EngineKind::Custom | EngineKind::Ollama => None,
    }?;
    read.inspect_err(|error| debug!(model = %model.id, %error, "no estimate of a model's memory")).ok()
}

/// Where a path of a model's engine is on this host, where that can be told.
pub(crate) fn on_host(model: &ModelSpec, path: &str) -> Option<PathBuf> {
    Words::of(model).host_path(path)
}

/// The GGUF file that a model's engine reads, where it is on this host.
pub(crate) fn weights(model: &ModelSpec) -> Option<PathBuf> {
    let words = Words::of(model);
    words.host_path(words.value(&["-m", "--model"])?)
}

/// An engine's command line.
struct Words<'a> {
    model: &'a ModelSpec,
    list: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn of(model: &'a ModelSpec) -> Self {
        let engine = &model.engine;
        Self { model, list: engine.command.iter().chain(&engine.args).map(String::as_str).collect() }
    }

    /// What follows one of these flags, as a word of its own or behind `=`. The last one counts.
    fn value(&self, flags: &[&str]) -> Option<&'a str> {
        let follows = self.list.iter().zip(self.list.iter().skip(1)).filter(|(flag, _)| flags.contains(flag));
        let joined = self.list.iter().filter_map(|word| {
            let (flag, value) = word.split_once('=')?;
            flags.contains(&flag).then_some(value)
        });
        follows.map(|(_, value)| *value).chain(joined).last()
    }

    fn llama(&self, on_gpu: bool) -> Option<Result<u64, FootprintError>> {
        let file = weights(self.model)?;
        let slots = u64::from(self.model.concurrency.max(1));
        // llama-server divides what it is given among its slots; 0 is what the model was trained for.
        let total = self.value(&["-c", "--ctx-size"]).and_then(|text| text.parse::<u64>().ok());
        let usage = match total.filter(|total| *total > 0) {
            Some(total) => Use { slots, ..Use::llama(Some(total / slots), on_gpu) },
            None => Use::llama(None, on_gpu),
        };
        let beside = ["--mmproj", "-md", "--model-draft", "--control-vector"];
        let beside = beside.iter().filter_map(|flag| self.value(&[flag]));
        let adapters = self.model.adapters.iter().map(|adapter| adapter.path.as_str());
        let adapters = adapters.chain(self.value(&["--lora"]).filter(|_| self.model.adapters.is_empty()));
        let more = beside.chain(adapters).filter_map(|path| {
            let path = self.host_path(path)?;
            path.metadata().ok().map(|meta| meta.len())
        });
        let more = more.fold(0, u64::saturating_add);
        Some(of_gguf(&file).map(|model| model.total(usage).saturating_add(more)))
    }

    fn vllm(&self, context: u32) -> Option<Result<u64, FootprintError>> {
        let named = self.value(&["--model"]);
        let folder = named.into_iter().chain(self.list.iter().copied()).find_map(|word| {
            let path = self.host_path(word).filter(|path| path.is_absolute())?;
            path.join("config.json").is_file().then_some(path)
        })?;
        let slots = u64::from(self.model.concurrency.max(1));
        let gpus = u64::from(self.model.accelerators.max(1));
        let usage = Use { slots, ..Use::vllm(u64::from(context), gpus) };
        Some(of_folder(&folder).map(|model| Footprint::total(&model, usage)))
    }

    /// Where a path of the engine's is on this host.
    fn host_path(&self, path: &str) -> Option<PathBuf> {
        if path.contains('{') || path.starts_with('-') {
            return None;
        }
        match self.model.engine.driver {
            Driver::Docker => self.mounted(Path::new(path)),
            _ => Some(berth_config::env::expand_home(path)),
        }
    }

    /// A container's path through its volumes; only folders of the host can be looked into.
    fn mounted(&self, path: &Path) -> Option<PathBuf> {
        let mounts: BTreeMap<&Path, PathBuf> = self
            .model
            .engine
            .volumes
            .iter()
            .filter_map(|volume| {
                let mut parts = volume.split(':');
                let (source, target) = (parts.next()?, parts.next()?);
                let source = berth_config::env::expand_home(source);
                let is_path = source.is_absolute() || source.starts_with(".");
                is_path.then_some((Path::new(target), source))
            })
            .collect();
        // The deepest one hides the others.
        let (target, source) = mounts.iter().rev().find(|(target, _)| path.starts_with(target))?;
        match path.strip_prefix(target).ok()? {
            // A volume may be the file itself.
            rest if rest.as_os_str().is_empty() => Some(source.clone()),
            rest => Some(source.join(rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_config::Config;

    use super::*;

    const TINY: &[u8] = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0weights";

    fn read(folder: &Path, more: &str) -> Option<u64> {
        let more = more.replace("FOLDER", &folder.display().to_string());
        let text = format!("[[models]]\nid = \"m\"\nengine = \"llama.cpp\"\n{more}");
        estimate(&Config::parse(&text, "test.toml").unwrap().models[0], false)
    }

    #[test]
    fn a_file_is_found_where_the_engine_will_find_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.gguf"), TINY).unwrap();
        for found in [
            "driver = \"process\"\nargs = [\"-m\", \"FOLDER/m.gguf\"]\n",
            "driver = \"process\"\nargs = [\"--model=FOLDER/m.gguf\"]\n",
            "args = [\"-m\", \"/models/m.gguf\"]\nvolumes = [\"FOLDER:/models:ro\"]\n",
            "args = [\"-m\", \"/one.gguf\"]\nvolumes = [\"FOLDER/m.gguf:/one.gguf\"]\n",
        ] {
            assert!(read(folder.path(), found).is_some(), "{found}");
        }
        for unknown in [
            "args = [\"-m\", \"FOLDER/m.gguf\"]\n",
            "args = [\"-m\", \"/models/m.gguf\"]\nvolumes = [\"named:/models\"]\n",
            "args = [\"-hf\", \"org/name\"]\n",
            "memory = \"1GiB\"\ndriver = \"process\"\nargs = [\"-m\", \"FOLDER/m.gguf\"]\n",
            "driver = \"process\"\nargs = [\"-m\", \"FOLDER/none.gguf\"]\n",
        ] {
            assert_eq!(read(folder.path(), unknown), None, "{unknown}");
        }
    }
}
