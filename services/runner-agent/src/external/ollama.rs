//! Ollama's own routes: what it has in memory, loading and unloading.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_config::ExternalKind;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::driver::Failure;
use crate::external::list::{self, Held};
use crate::external::server::{Server, plain};

/// How long what is unloaded may take to be gone.
const GONE: Duration = Duration::from_secs(10);

impl Server {
    /// What it has in memory.
    pub(crate) async fn loaded(&self) -> Result<BTreeMap<String, Held>, String> {
        list::loaded(&self.get("/api/ps").await?)
    }

    /// Has it load a model, to be kept until it is told otherwise.
    pub(crate) async fn load(&self, model: &str, limit: Duration) -> Result<(), Failure> {
        let generate = json!({ "model": model, "keep_alive": -1, "stream": false });
        let (status, said) = self.post("/api/generate", &generate, limit).await?;
        if status.is_success() {
            return Ok(());
        }
        // One that only embeds is loaded by embedding nothing.
        if status == StatusCode::BAD_REQUEST && said.contains("does not support") {
            let embed = json!({ "model": model, "input": "", "keep_alive": -1 });
            let (status, said) = self.post("/api/embed", &embed, limit).await?;
            return if status.is_success() { Ok(()) } else { Err(self.refused(status, &said)) };
        }
        Err(self.refused(status, &said))
    }

    fn refused(&self, status: StatusCode, said: &str) -> Failure {
        let message = format!(
            "the external server `{}` does not load the model (HTTP {}): {said}",
            self.config.name,
            status.as_u16()
        );
        // It will not be there the next time either; the list says when it is.
        if status == StatusCode::NOT_FOUND { Failure::permanent(message) } else { Failure::passing(message) }
    }

    async fn post(&self, path: &str, body: &Value, limit: Duration) -> Result<(StatusCode, String), Failure> {
        let asked = async {
            let answer =
                self.request(Method::POST, path)?.timeout(limit).json(body).send().await.map_err(plain)?;
            let status = answer.status();
            let said: Value = answer.json().await.unwrap_or_default();
            let error = said.get("error").and_then(Value::as_str).unwrap_or("it does not say why");
            Ok((status, error.chars().take(500).collect()))
        };
        asked.await.map_err(|why: String| {
            Failure::passing(format!(
                "the external server `{}` does not load the model: {why}",
                self.config.name
            ))
        })
    }

    /// Frees what a model takes, where the server can be told to.
    pub(crate) async fn give_back(&self, model: &str) {
        if self.config.kind == ExternalKind::Ollama {
            self.unload(model).await;
        }
    }

    /// Has it unload a model; returns when it has, or does not within a time.
    pub(crate) async fn unload(&self, model: &str) {
        let body = json!({ "model": model, "keep_alive": 0, "stream": false });
        if let Err(failure) = self.post("/api/generate", &body, GONE).await {
            // A server that is gone holds nothing.
            info!(server = self.config.name, model, why = failure.message, "could not have a model unloaded");
            return;
        }
        let gone = async {
            while let Ok(loaded) = self.loaded().await
                && loaded.contains_key(model)
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(GONE, gone).await.is_err() {
            warn!(
                server = self.config.name,
                model, "the server still holds a model that it was told to unload"
            );
        }
    }

    /// What an agent that was killed had it keep for ever.
    pub(crate) async fn unload_leftovers(&self) {
        if self.config.kind != ExternalKind::Ollama {
            return;
        }
        let seen = self.seen();
        let endless =
            seen.loaded.iter().filter(|(name, held)| held.endless && list::is_taken(&self.config, name));
        for (model, _) in endless {
            info!(server = self.config.name, model, "unloading a model that an earlier run had loaded");
            self.unload(model).await;
        }
    }
}
