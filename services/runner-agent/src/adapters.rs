//! The LoRA adapters of an engine. vLLM is told to load one before the first request for it, and to let go of the one
//! that was used longest ago; llama-server has all of them from its start, and each request says which applies.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_telemetry::Chain;
use berth_wire::{ApiError, EngineKind, EngineState, ErrorKind, Job, ModelId, ModelSpec};
use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tracing::{info, warn};

use crate::cell::EngineCell;
use crate::estimate::on_host;
use crate::loaded::Loaded;
use crate::shared::Shared;
use crate::spans::set;
use crate::vllm::Vllm;

/// How long an engine may take to load one.
const LOAD: Duration = Duration::from_secs(120);
/// How long llama-server may take to be told something.
const ANSWER: Duration = Duration::from_secs(10);
/// Ranks that vLLM takes, and the one that it makes room for unless it is told.
const RANKS: [u64; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
const RANK: u64 = 16;

/// The adapters that an engine holds.
#[derive(Debug)]
pub(crate) struct Adapters {
    loaded: RefCell<Loaded>,
    /// Whether the engine was asked what it holds: an agent before this one may have had it load some.
    asked: Cell<bool>,
    /// Loading and unloading is one thing at a time, in the order in which it is asked for.
    turn: Mutex<()>,
    left: Notify,
}

/// A request is for this adapter: until it is dropped the adapter stays.
#[derive(Debug)]
pub(crate) struct Use {
    adapters: Rc<Adapters>,
    id: ModelId,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.adapters.loaded.borrow_mut().leave(&self.id);
        self.adapters.left.notify_one();
    }
}

/// Gets a job's adapter ready on its engine. If that cannot be, the answer that the client gets: to its engine and to
/// those who ask the base nothing has happened.
pub(crate) async fn lend(
    shared: &Rc<Shared>,
    cell: &Rc<EngineCell>,
    job: &Job,
) -> Result<Option<Use>, reqwest::Response> {
    let Some(id) = &job.adapter else { return Ok(None) };
    let Some((_, adapter)) = cell.model().adapter(id) else {
        let message = format!(
            "the engine of `{}` was started before its adapter `{id}` was configured; it serves it once it has been \
             started anew",
            job.model
        );
        return Err(refusal(message));
    };
    if cell.model().engine.kind != EngineKind::Vllm {
        return Ok(None);
    }
    if let Some(used) = Adapters::take(&cell.adapters, id) {
        return Ok(Some(used));
    }
    // To its end, even if its client leaves: half of a load would leave the books wrong.
    let (task, path) = ((Rc::clone(shared), Rc::clone(cell), id.clone()), adapter.path.clone());
    let load = actix_rt::spawn(async move {
        let (shared, cell, id) = task;
        let engine = Vllm { http: &shared.http, endpoint: &cell.endpoint() };
        let began = Instant::now();
        let done = Adapters::load(&cell.adapters, &engine, &id, &path).await;
        match &done {
            Ok(_) => {
                shared.tell_lane(&cell);
                let took_ms = began.elapsed().as_millis();
                info!(engine = %cell.id(), model = %cell.model().id, adapter = %id, took_ms, "adapter ready");
            }
            Err(why) => warn!(engine = %cell.id(), adapter = %id, path, "an adapter cannot be loaded: {why}"),
        }
        done
    });
    match load.await {
        Ok(Ok(used)) => Ok(Some(used)),
        _ => Err(refusal(format!(
            "the engine of `{}` could not load its adapter `{id}`; the log of its agent says why",
            job.model
        ))),
    }
}

/// An answer in the engine's place.
fn refusal(message: String) -> reqwest::Response {
    let error = ApiError::new(ErrorKind::Unavailable, "adapter_unavailable", message).param("model");
    let body = json!({ "error": {
        "message": error.message, "type": error.kind.openai_type(), "param": error.param, "code": error.code,
    } });
    let mut answer = http::Response::new(body.to_string());
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    answer.headers_mut().insert(CONTENT_TYPE, reqwest::header::HeaderValue::from_static("application/json"));
    answer.into()
}

impl Adapters {
    pub(crate) fn new(model: &ModelSpec) -> Rc<Self> {
        let most = model.max_adapters.unwrap_or(u32::MAX);
        Rc::new(Self {
            loaded: RefCell::new(Loaded::new(usize::try_from(most).unwrap_or(usize::MAX))),
            asked: Cell::new(false),
            turn: Mutex::new(()),
            left: Notify::new(),
        })
    }

    fn take(adapters: &Rc<Self>, id: &ModelId) -> Option<Use> {
        let taken = adapters.loaded.borrow_mut().take(id);
        taken.then(|| Use { adapters: Rc::clone(adapters), id: id.clone() })
    }

    async fn load(adapters: &Rc<Self>, engine: &Vllm<'_>, id: &ModelId, path: &str) -> Result<Use, String> {
        let _turn = adapters.turn.lock().await;
        if !adapters.asked.get() {
            let held = held(engine).await?;
            held.into_iter().for_each(|id| adapters.loaded.borrow_mut().add(id));
            adapters.asked.set(true);
        }
        if let Some(used) = Self::take(adapters, id) {
            return Ok(used);
        }
        loop {
            let leaving = adapters.loaded.borrow_mut().make_room();
            let Some(leaving) = leaving else { break };
            // It is given to nobody any more, so those who use it come to an end.
            while adapters.loaded.borrow().users(&leaving) > 0 {
                adapters.left.notified().await;
            }
            unload(engine, &leaving).await;
            adapters.loaded.borrow_mut().remove(&leaving);
        }
        let body = json!({ "lora_name": id, "lora_path": path });
        tell(engine, "/v1/load_lora_adapter", body).await?;
        adapters.loaded.borrow_mut().add(id.clone());
        Self::take(adapters, id).ok_or_else(|| "it was unloaded at once".into())
    }

    /// What the engine holds, as far as is known: llama-server all that it was started with.
    pub(crate) fn held(&self, model: &ModelSpec, state: EngineState) -> Vec<ModelId> {
        match (model.engine.kind, state) {
            (EngineKind::LlamaCpp, EngineState::Ready) => {
                model.adapters.iter().map(|adapter| adapter.id.clone()).collect()
            }
            _ => self.loaded.borrow().held(),
        }
    }

    /// The engine has forgotten their weights, if not their names.
    pub(crate) async fn forget(&self, engine: &Vllm<'_>) {
        let _turn = self.turn.lock().await;
        let all = self.loaded.borrow_mut().clear();
        for id in all {
            unload(engine, &id).await;
        }
    }
}

/// What one that stays loaded takes is no reason to fail those who wait.
async fn unload(engine: &Vllm<'_>, id: &ModelId) {
    match tell(engine, "/v1/unload_lora_adapter", json!({ "lora_name": id })).await {
        Ok(()) => info!(adapter = %id, "adapter unloaded"),
        Err(why) => warn!(adapter = %id, "an adapter could not be unloaded: {why}"),
    }
}

async fn tell(engine: &Vllm<'_>, path: &str, body: Value) -> Result<(), String> {
    let (status, answer) = engine.ask(Method::POST, path, Some(body), LOAD).await?;
    if status.is_success() {
        return Ok(());
    }
    let said = answer.pointer("/error/message").or_else(|| answer.get("message")).and_then(Value::as_str);
    Err(format!("{path} was answered with status {status}: {}", said.unwrap_or("no reason")))
}

/// What the engine holds already.
async fn held(engine: &Vllm<'_>) -> Result<Vec<ModelId>, String> {
    let (status, answer) = engine.ask(Method::GET, "/v1/models", None, ANSWER).await?;
    let Some(models) = answer.get("data").and_then(Value::as_array).filter(|_| status.is_success()) else {
        return Err(format!("/v1/models was answered with status {status}"));
    };
    let adapters = models.iter().filter(|model| model.get("parent").is_some_and(Value::is_string));
    Ok(adapters.filter_map(|model| Some(ModelId::from(model.get("id")?.as_str()?.to_owned()))).collect())
}

/// Has an engine that has just become healthy serve its base wherever a request does not say otherwise: llama-server
/// applies the adapters that it was started with, on some routes even with `--lora-init-without-apply`.
pub(crate) async fn settle(http: &reqwest::Client, endpoint: &str, model: &ModelSpec) -> Result<(), String> {
    if model.engine.kind != EngineKind::LlamaCpp || model.adapters.is_empty() {
        return Ok(());
    }
    let url = format!("http://{endpoint}/lora-adapters");
    let asked = http.post(url).timeout(ANSWER).json(&scales(model, None)).send();
    let answer = asked.await.map_err(|error| Chain(&error.without_url()).to_string())?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("/lora-adapters was answered with status {}", answer.status()))
}

/// Which adapters apply: `one` or none. Each is named, since llama-server takes an empty list for what it has set.
fn scales(model: &ModelSpec, one: Option<usize>) -> Value {
    let of = |n: usize| json!({ "id": n, "scale": if Some(n) == one { 1.0 } else { 0.0 } });
    (0..model.adapters.len()).map(of).collect()
}

/// What a request to llama-server says of adapters, whatever its client had said; `None`: there is nothing to say.
pub(crate) fn choice(job: &Job, model: &ModelSpec) -> Option<String> {
    let json = job.content_type.is_none() && job.target.is_none();
    if model.engine.kind != EngineKind::LlamaCpp || model.adapters.is_empty() || !json {
        return None;
    }
    let one = job.adapter.as_ref().and_then(|id| model.adapter(id));
    Some(scales(model, one.map(|(n, _)| n)).to_string())
}

/// The body with that choice.
pub(crate) fn choose(body: Bytes, choice: &str) -> Bytes {
    set(body, "lora", choice)
}

/// Adapters of a model that are not where they should be, as far as this host can look.
pub(crate) fn missing(model: &ModelSpec) -> Option<String> {
    model.adapters.iter().find_map(|adapter| {
        let path = on_host(model, &adapter.path)?;
        let gone = path.try_exists().is_ok_and(|is| !is);
        gone.then(|| format!("the adapter `{}` of `{}` is not at {}", adapter.id, model.id, path.display()))
    })
}

/// vLLM makes room for adapters of rank 16: what it is to be told where this host can read that one has more.
pub(crate) fn rank(model: &ModelSpec) -> Vec<String> {
    const FLAG: &str = "--max-lora-rank";
    let engine = &model.engine;
    let own = engine.command.iter().chain(&engine.args).any(|word| word.split('=').next() == Some(FLAG));
    if engine.kind != EngineKind::Vllm || own {
        return Vec::new();
    }
    let ranks = model.adapters.iter().filter_map(|adapter| rank_of(&on_host(model, &adapter.path)?));
    let most = ranks.max().filter(|rank| *rank > RANK);
    let room = most.and_then(|most| RANKS.into_iter().find(|rank| *rank >= most));
    room.map_or_else(Vec::new, |rank| vec![FLAG.to_owned(), rank.to_string()])
}

fn rank_of(folder: &Path) -> Option<u64> {
    let text = std::fs::read(folder.join("adapter_config.json")).ok()?;
    serde_json::from_slice::<Value>(&text).ok()?.get("r")?.as_u64()
}

#[cfg(test)]
#[path = "adapters_tests.rs"]
mod tests;
