//! One server: whether it answers, which models it has, and which of them are loaded.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_actors::Backoff;
use berth_config::{ExternalConfig, ExternalKind};
use berth_telemetry::Chain;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::external::list::{self, Held, Listed};

/// How often a server that answers is looked at, beside when a request failed to reach it.
const EVERY: Duration = Duration::from_secs(15);
/// One that does not is looked at again after this, later up to [`BACKOFF_MOST`].
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// A server that did not answer is asked once more before it counts as down.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a list may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// A list larger than this is none.
const LARGEST: u64 = 8 << 20;

/// What was last seen of a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// `None`: not looked at yet.
    up: Option<bool>,
    /// Why it is down.
    why: String,
    /// Its models when it last answered.
    pub(crate) listed: Vec<Listed>,
    /// Of Ollama: what it has in memory.
    pub(crate) loaded: BTreeMap<String, Held>,
}

/// One `[[external]]` entry at work.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) config: ExternalConfig,
    http: reqwest::Client,
    key: Result<Option<HeaderValue>, String>,
    seen: watch::Sender<Seen>,
    doubted: Notify,
    /// It has come back since this was last asked.
    revived: Cell<bool>,
    warned: RefCell<BTreeSet<String>>,
}

impl Server {
    pub(crate) fn new(config: ExternalConfig, http: reqwest::Client) -> Self {
        let key = config.key.as_ref().map(|source| {
            let secret = source.read()?;
            let mut header = HeaderValue::from_str(&format!("Bearer {}", secret.expose()))
                .map_err(|_| "its key holds what no header can".to_owned())?;
            header.set_sensitive(true);
            Ok(header)
        });
        Self {
            config,
            http,
            key: key.transpose(),
            seen: watch::Sender::default(),
            doubted: Notify::new(),
            revived: Cell::new(false),
            warned: RefCell::default(),
        }
    }

    pub(crate) fn key(&self) -> Option<HeaderValue> {
        self.key.clone().ok().flatten()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    pub(crate) fn state(&self) -> String {
        match (self.seen.borrow().up, self.down()) {
            (None, _) => "not looked at yet".into(),
            (_, Some(why)) => format!("down: {why}"),
            _ => "up".into(),
        }
    }

    /// Why it cannot be used.
    pub(crate) fn down(&self) -> Option<String> {
        self.seen.borrow().down()
    }

    /// Looks at it now, whatever the time.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Whether it has come back since this was last asked.
    pub(crate) fn take_revival(&self) -> bool {
        self.revived.take()
    }

    /// Says something once.
    pub(crate) fn warn_once(&self, what: &str) {
        if self.warned.borrow_mut().insert(what.to_owned()) {
            warn!(server = self.config.name, "{what}");
        }
    }

    /// Looks at it again and again; `changed` is called after each look.
    pub(crate) async fn watch(&self, changed: impl Fn()) {
        let mut backoff = Backoff::new(BACKOFF, BACKOFF_MOST);
        let mut first = true;
        loop {
            self.look().await;
            let pause = match self.down() {
                Some(_) => backoff.next_delay(),
                None => {
                    backoff.reset();
                    if std::mem::take(&mut first) {
                        self.unload_leftovers().await;
                    }
                    EVERY
                }
            };
            changed();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.doubted.notified() => {}
            }
        }
    }

    /// Looks at it once: what is seen is in [`Server::seen`] after that.
    pub(crate) async fn look(&self) {
        let mut asked = self.ask().await;
        if asked.is_err() && self.seen.borrow().up == Some(true) {
            tokio::time::sleep(AGAIN).await;
            asked = self.ask().await;
        }
        let was = self.seen.borrow().up;
        match asked {
            Ok((listed, loaded)) => {
                if was != Some(true) {
                    info!(server = self.config.name, models = listed.len(), "an external server answers");
                }
                self.revived.set(self.revived.get() || was == Some(false));
                self.seen.send_replace(Seen { up: Some(true), why: String::new(), listed, loaded });
            }
            Err(why) => {
                if was != Some(false) {
                    warn!(server = self.config.name, why, "an external server cannot be used; looking again");
                }
                self.seen.send_modify(|seen| {
                    seen.up = Some(false);
                    seen.why = why;
                    seen.loaded.clear();
                });
            }
        }
    }

    async fn ask(&self) -> Result<(Vec<Listed>, BTreeMap<String, Held>), String> {
        if self.config.kind == ExternalKind::Ollama {
            let tags = self.get("/api/tags").await?;
            return Ok((list::tags(&tags)?, self.loaded().await?));
        }
        Ok((list::models(&self.get("/v1/models").await?)?, BTreeMap::new()))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, String> {
        let request = self.http.request(method, format!("{}{path}", self.config.url));
        Ok(match self.key.clone()? {
            Some(key) => request.header(AUTHORIZATION, key),
            None => request,
        })
    }

    /// A JSON answer of the server.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.request(Method::GET, path)?.timeout(PATIENCE).send().await.map_err(plain)?;
        match answer.status() {
            status if status.is_success() => {}
            status if is_refusal(status) && self.config.key.is_some() => {
                return Err(format!(
                    "it refuses its key (HTTP {}): correct key_env or key_file",
                    status.as_u16()
                ));
            }
            status if is_refusal(status) => {
                return Err(format!(
                    "it wants a key (HTTP {}): name it by key_env or key_file",
                    status.as_u16()
                ));
            }
            status => return Err(format!("it answers {path} with HTTP {}", status.as_u16())),
        }
        if answer.content_length().is_some_and(|length| length > LARGEST) {
            return Err("its list of models is too large".into());
        }
        let body = answer.bytes().await.map_err(plain)?;
        serde_json::from_slice(&body)
            .map_err(|_| format!("what it answers at {path} is no JSON: correct its url or kind"))
    }
}

impl Seen {
    pub(crate) fn down(&self) -> Option<String> {
        (self.up == Some(false)).then(|| self.why.clone())
    }
}

/// Whether it is about the key.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// What became of a request, without the server's address.
pub(crate) fn plain(error: reqwest::Error) -> String {
    if error.is_timeout() {
        "it does not answer in time".into()
    } else if error.is_connect() {
        "it takes no connection; start it, or correct its [[external]] entry".into()
    } else {
        format!("what it answers is no HTTP: {}", Chain(&error.without_url()))
    }
}
