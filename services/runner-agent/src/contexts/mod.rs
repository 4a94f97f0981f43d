//! The contexts of sessions on a llama-server: of all of them where its model says so, else of those whose lease asks
//! for it. Each has a slot of its own while there are enough. What is in it is saved before the engine is stopped, and
//! read again before the session's first request to the next one. Whatever of that fails costs time and nothing else.

mod files;
mod leases;
mod seats;

use std::time::{Duration, Instant};

use berth_telemetry::Chain;
use berth_wire::{Driver, Job, ModelSpec, Route};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::cell::EngineCell;
use crate::shared::Shared;
pub(crate) use files::clear;
use files::{LONGEST, all, file_of, folder, is_fresh, purge};
pub(crate) use leases::hear;
use seats::Sitter;
pub(crate) use seats::{Contexts, Seated};

/// How long saving all of an engine's may take, since somebody may wait for its room; and reading one.
const SAVE: Duration = Duration::from_secs(10);
const READ: Duration = Duration::from_secs(10);
/// How long the engine may take to say which of its slots are in use.
const LOOK: Duration = Duration::from_secs(1);

/// Where the folder is within a container.
const INSIDE: &str = "/berth-contexts";

/// What an engine is started with, so that it can save and read.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) args: Vec<String>,
    /// Of its container.
    pub(crate) volumes: Vec<String>,
}

/// Gets the folder of an engine ready.
pub(crate) fn shelf(shared: &Shared, cell: &EngineCell) -> Shelf {
    let model = cell.model();
    if !model.may_keep_context() {
        return Shelf::default();
    }
    let folder = folder(&shared.config, model);
    let in_container = model.engine.driver == Driver::Docker;
    let outside = shared.docker.get().filter(|_| in_container).map(|docker| docker.paths().outside(&folder));
    if let Some(Err(why)) = &outside {
        cell.contexts.give_up();
        if let Some(docker) = shared.docker.get().filter(|docker| docker.paths().is_news()) {
            let name = &docker.owner().host;
            info!(host = %name, "contexts of engines in containers are not kept here: {why}");
        }
        return Shelf::default();
    }
    if let Err(error) = files::make(&folder, in_container) {
        cell.contexts.give_up();
        warn!(model = %model.id, %error, "contexts cannot be kept in {}", folder.display());
        return Shelf::default();
    }
    purge(&all(&shared.config), Some((&folder, age(model))));
    // Of the weights that it is about to read.
    let _ = cell.contexts.stamp(model);
    let (told, volumes) = match outside {
        Some(Ok(path)) => (INSIDE.to_owned(), vec![format!("{path}:{INSIDE}:z")]),
        _ => (folder.display().to_string(), Vec::new()),
    };
    Shelf { args: vec!["--slot-save-path".into(), told], volumes }
}

/// For how long what was saved is kept.
fn age(model: &ModelSpec) -> Duration {
    model.keep_context.unwrap_or(LONGEST)
}

/// Seats a request, with its session's context from before if there is one.
pub(crate) async fn seat(shared: &Shared, cell: &EngineCell, job: &Job) -> Option<Seated> {
    let (model, contexts) = (cell.model(), &cell.contexts);
    let completes =
        matches!(job.route, Route::ChatCompletions | Route::Completions | Route::Responses | Route::Messages);
    if !contexts.may_keep() || !completes || job.content_type.is_some() {
        return None;
    }
    let saved = |file: &str| folder(&shared.config, model).join(file);
    let sitter = file_of(contexts.stamp(model), job).map(|file| Sitter::of(model, job, file));
    let sitter =
        sitter.filter(|sitter| contexts.wants(sitter) || is_fresh(&saved(sitter.file()), age(model)));
    if sitter.is_none() && !contexts.are_assigned() {
        return Some(Contexts::stand(contexts));
    }
    // Those whom nobody has seated sit where the engine put them.
    let busy = if contexts.any_stands() { busy(shared, cell).await } else { Vec::new() };
    let Some((seated, new)) = Contexts::take(contexts, sitter.clone(), &busy) else {
        return Some(Contexts::stand(contexts));
    };
    let Some((sitter, slot_number)) = sitter.filter(|_| new).zip(seated.slot()) else { return Some(seated) };
    let path = saved(sitter.file());
    if !is_fresh(&path, age(model)) {
        return Some(seated);
    }
    let began = Instant::now();
    let read = slot(shared, &cell.endpoint(), slot_number, "restore", sitter.file(), READ).await;
    let (engine, model, took_ms) = (cell.id(), &model.id, began.elapsed().as_millis());
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

/// Saves what is in the slots of an engine that is about to be stopped, and runs nothing any more.
pub(crate) async fn save(shared: &Shared, cell: &EngineCell, endpoint: &str) {
    let kept = cell.contexts.kept();
    if kept.is_empty() {
        return;
    }
    let (began, mut saved) = (Instant::now(), 0u32);
    let folder = folder(&shared.config, cell.model());
    for (slot_number, file) in kept {
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
    purge(&all(&shared.config), Some((&folder, age(cell.model()))));
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

/// The slots that the engine says are in use; a request that names one of them would wait for it.
async fn busy(shared: &Shared, cell: &EngineCell) -> Vec<usize> {
    let asked = shared.http.get(cell.url("/slots")).timeout(LOOK).send();
    let answer = async { asked.await.ok()?.json::<Vec<Value>>().await.ok() };
    let slots = answer.await.unwrap_or_default();
    let in_use = slots.iter().filter(|slot| slot.get("is_processing").and_then(Value::as_bool) == Some(true));
    in_use.filter_map(|slot| usize::try_from(slot.get("id")?.as_u64()?).ok()).collect()
}
