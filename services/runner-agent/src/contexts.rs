//! The contexts of sessions on a llama-server that is to keep them: each session has a slot of its own while there are
//! enough. What is in it is saved before the engine is stopped, and read again before the session's first request to
//! the next one. Whatever of that fails costs time and nothing else.

use std::cell::RefCell;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use berth_config::Config;
use berth_telemetry::Chain;
use berth_wire::{Job, ModelSpec, Route, slug};
use bytes::Bytes;
use serde_json::json;
use tracing::{debug, info, warn};

use crate::cell::EngineCell;
use crate::estimate::weights;
use crate::run::state_folder;
use crate::shared::Shared;
use crate::spans::set;

/// What a host keeps at most.
const FILES: usize = 64;
const BYTES: u64 = 4 << 30;
/// No model keeps its own for longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How long saving all of an engine's may take, since somebody may wait for its room; and reading one.
const SAVE: Duration = Duration::from_secs(10);
const READ: Duration = Duration::from_secs(10);

/// A slot of the server.
#[derive(Debug, Default)]
struct Seat {
    /// The file of the session whose context is in it.
    file: Option<String>,
    taken: bool,
    used: u64,
}

/// Who sits where on one engine.
#[derive(Debug)]
pub(crate) struct Contexts {
    seats: RefCell<Vec<Seat>>,
}

/// A request has this slot until it is dropped.
#[derive(Debug)]
pub(crate) struct Seated {
    contexts: Rc<Contexts>,
    slot: usize,
}

impl Seated {
    /// The body with the slot that it is to have.
    pub(crate) fn name(slot: usize, body: Bytes) -> Bytes {
        set(body, "id_slot", &slot.to_string())
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if let Some(seat) = self.contexts.seats.borrow_mut().get_mut(self.slot) {
            seat.taken = false;
        }
    }
}

impl Contexts {
    pub(crate) fn new(model: &ModelSpec) -> Rc<Self> {
        let slots = model.keep_context.map_or(0, |_| model.concurrency);
        Rc::new(Self { seats: RefCell::new((0..slots).map(|_| Seat::default()).collect()) })
    }

    /// A slot for a request: its session's, else the free one that was used longest ago, first of those that hold nobody's
    /// context. And whether the session is new there.
    fn take(contexts: &Rc<Self>, file: Option<&str>) -> Option<(Seated, bool)> {
        let mut seats = contexts.seats.borrow_mut();
        let now = seats.iter().map(|seat| seat.used).max().unwrap_or(0) + 1;
        let sits = file.and_then(|file| seats.iter().position(|seat| seat.file.as_deref() == Some(file)));
        let free = seats.iter().enumerate().filter(|(_, seat)| !seat.taken);
        let other = free.min_by_key(|(_, seat)| (seat.file.is_some(), seat.used)).map(|(slot, _)| slot);
        let own = sits.filter(|slot| seats.get(*slot).is_some_and(|seat| !seat.taken));
        let slot = own.or(other)?;
        let seat = seats.get_mut(slot)?;
        (seat.taken, seat.used) = (true, now);
        if own.is_none() {
            // A second request of a session beside the first has a slot and leaves nothing in it.
            seat.file = file.filter(|_| sits.is_none()).map(str::to_owned);
        }
        let new = own.is_none() && seat.file.is_some();
        Some((Seated { contexts: Rc::clone(contexts), slot }, new))
    }

    /// Who has something to keep, the last used first.
    fn kept(&self) -> Vec<(usize, String)> {
        let seats = self.seats.borrow();
        let mut kept: Vec<_> = seats
            .iter()
            .enumerate()
            .filter_map(|(slot, seat)| Some((seat.used, slot, seat.file.clone()?)))
            .collect();
        kept.sort_by(|a, b| b.cmp(a));
        kept.into_iter().map(|(_, slot, file)| (slot, file)).collect()
    }
}

/// Where those of all models are kept, each model's in a folder of its own.
fn all(config: &Config) -> PathBuf {
    state_folder(config, "contexts")
}

/// Where those of a model are kept.
fn folder(config: &Config, model: &ModelSpec) -> PathBuf {
    all(config).join(slug::encode(model.id.as_str()))
}

/// What the engine is started with.
pub(crate) fn args(config: &Config, model: &ModelSpec) -> Vec<String> {
    let Some(age) = model.keep_context else { return Vec::new() };
    let folder = folder(config, model);
    // Nobody else on this machine reads it.
    if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
        warn!(model = %model.id, %error, "contexts cannot be kept in {}", folder.display());
        return Vec::new();
    }
    purge(&all(config), Some((&folder, age)));
    vec!["--slot-save-path".into(), folder.display().to_string()]
}

/// The file of a session: by who it is and by everything that its content depends on.
fn file_of(model: &ModelSpec, job: &Job) -> Option<String> {
    let session = job.session.as_deref()?;
    let weights = weights(model).and_then(|path| path.metadata().ok());
    let written = weights.as_ref().and_then(|meta| meta.modified().ok());
    let key = json!([model.id, model.engine, weights.map(|meta| meta.len()), written, job.key, session]);
    Some(format!("{}.slot", blake3::hash(key.to_string().as_bytes()).to_hex()))
}

/// Seats a request, with its session's context from before if there is one.
pub(crate) async fn seat(shared: &Shared, cell: &EngineCell, job: &Job) -> Option<Seated> {
    let age = cell.model().keep_context?;
    let completes =
        matches!(job.route, Route::ChatCompletions | Route::Completions | Route::Responses | Route::Messages);
    if !completes || job.content_type.is_some() {
        return None;
    }
    let file = file_of(cell.model(), job);
    let (seated, new) = Contexts::take(&cell.contexts, file.as_deref())?;
    let Some(file) = file.filter(|_| new) else { return Some(seated) };
    let path = folder(&shared.config, cell.model()).join(&file);
    if !is_fresh(&path, age) {
        return Some(seated);
    }
    let began = Instant::now();
    let read = slot(shared, &cell.endpoint(), seated.slot, "restore", &file, READ).await;
    let (engine, model, took_ms) = (cell.id(), &cell.model().id, began.elapsed().as_millis());
    match read {
        Ok(()) => info!(%engine, %model, took_ms, "read the context of a session again"),
        Err(why) => info!(%engine, %model, "the context of a session is lost: {why}"),
    }
    // What comes of it now is saved anew.
    if let Err(error) = std::fs::remove_file(&path) {
        debug!(%error, "cannot remove a context");
    }
    Some(seated)
}

fn is_fresh(path: &Path, age: Duration) -> bool {
    let written = path.metadata().and_then(|meta| meta.modified()).ok();
    written.is_some_and(|at| SystemTime::now().duration_since(at).is_ok_and(|old| old <= age))
}

/// Saves what is in the slots of an engine that is about to be stopped, and runs nothing any more.
pub(crate) async fn save(shared: &Shared, cell: &EngineCell, endpoint: &str) {
    let Some(age) = cell.model().keep_context else { return };
    let (began, mut saved) = (Instant::now(), 0u32);
    let folder = folder(&shared.config, cell.model());
    for (slot_number, file) in cell.contexts.kept() {
        let left = SAVE.saturating_sub(began.elapsed());
        match slot(shared, endpoint, slot_number, "save", &file, left).await {
            Ok(()) => saved += 1,
            Err(why) => {
                info!(engine = %cell.id(), model = %cell.model().id, "the context of a session is not kept: {why}");
                // Half of one is none.
                let _ = std::fs::remove_file(folder.join(&file));
            }
        }
    }
    if saved > 0 {
        let took_ms = began.elapsed().as_millis();
        info!(engine = %cell.id(), model = %cell.model().id, saved, took_ms, "kept the contexts of sessions");
    }
    purge(&all(&shared.config), Some((&folder, age)));
}

async fn slot(
    shared: &Shared,
    endpoint: &str,
    slot: usize,
    action: &str,
    file: &str,
    limit: Duration,
) -> Result<(), String> {
    let url = format!("http://{endpoint}/slots/{slot}?action={action}");
    let asked = shared.http.post(url).timeout(limit).json(&json!({ "filename": file })).send();
    let answer = asked.await.map_err(|error| Chain(&error.without_url()).to_string())?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("{action} was answered with status {status}")),
    }
}

/// Removes what an agent of before has left, if nobody comes back to it.
pub(crate) fn clear(config: &Config) {
    purge(&all(config), None);
}

/// Removes what is too old, and the oldest of what is too much. How long one model keeps its own is known here.
fn purge(all: &Path, one: Option<(&Path, Duration)>) {
    let within = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = within(all)
        .flat_map(|folder| within(&folder.path()))
        .filter_map(|entry| {
            let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    let mut bytes = 0u64;
    for (n, (_, len, path)) in files.into_iter().enumerate() {
        bytes = bytes.saturating_add(len);
        let own = one.filter(|(folder, _)| path.starts_with(folder));
        let age = own.map_or(LONGEST, |(_, age)| age);
        if n >= FILES || bytes > BYTES || !is_fresh(&path, age) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts(slots: usize) -> Rc<Contexts> {
        Rc::new(Contexts { seats: RefCell::new((0..slots).map(|_| Seat::default()).collect()) })
    }

    #[test]
    fn a_session_comes_back_to_its_slot_and_others_leave_it_alone_while_they_can() {
        let contexts = contexts(2);
        let (a, new) = Contexts::take(&contexts, Some("a")).unwrap();
        assert_eq!((a.slot(), new), (0, true));
        drop(a);
        let (nobody, _) = Contexts::take(&contexts, None).unwrap();
        assert_eq!(nobody.slot(), 1, "a slot that holds nothing goes first");
        let (a, new) = Contexts::take(&contexts, Some("a")).unwrap();
        assert_eq!((a.slot(), new), (0, false));
        assert!(Contexts::take(&contexts, Some("b")).is_none(), "all are taken");
        drop(nobody);
        let (twin, new) = Contexts::take(&contexts, Some("a")).unwrap();
        assert_eq!((twin.slot(), new), (1, false), "beside its own request");
        drop((a, twin));
        assert_eq!(contexts.kept(), [(0, "a".to_owned())]);
    }

    #[test]
    fn no_more_is_kept_than_so_many_files() {
        let all = tempfile::tempdir().unwrap();
        let (one, other) = (all.path().join("one"), all.path().join("other"));
        for folder in [&one, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        for n in 0..FILES + 2 {
            std::fs::write(one.join(n.to_string()), "x").unwrap();
        }
        std::fs::write(other.join("last"), "x").unwrap();
        let count = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
        purge(all.path(), None);
        assert_eq!(count(&one) + count(&other), FILES);
        purge(all.path(), Some((&one, Duration::ZERO)));
        assert_eq!((count(&one), count(&other)), (0, 1), "another model's are its own affair");
    }
}
