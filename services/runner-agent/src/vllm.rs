//! What vLLM is asked beside requests: to sleep, to wake, whether it sleeps. It serves these routes only with
//! `VLLM_SERVER_DEV_MODE=1`, and none of them to clients.

use std::time::Duration;

use berth_telemetry::Chain;
use berth_wire::SleepLevel;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// How long it may take to say how it is.
const ANSWER: Duration = Duration::from_secs(10);

/// One running vLLM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vllm<'a> {
    pub(crate) http: &'a reqwest::Client,
    pub(crate) endpoint: &'a str,
}

impl Vllm<'_> {
    /// Whether it sleeps; `None`: it was not started as one that can.
    pub(crate) async fn is_sleeping(&self) -> Result<Option<bool>, String> {
        match self.ask(Method::GET, "/is_sleeping", None, ANSWER).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, answer) if status.is_success() => {
                match answer.get("is_sleeping").and_then(Value::as_bool) {
                    Some(sleeps) => Ok(Some(sleeps)),
                    None => Err("it does not say whether it sleeps".into()),
                }
            }
            (status, _) => Err(format!("/is_sleeping was answered with status {status}")),
        }
    }

    /// Puts it to sleep. What runs on it is aborted, so nothing should.
    pub(crate) async fn sleep(&self, level: SleepLevel, limit: Duration) -> Result<(), String> {
        let level = match level {
            SleepLevel::Ram => 1,
            SleepLevel::Disk => 2,
        };
        self.order(&format!("/sleep?level={level}"), None, limit).await?;
        self.expect(true).await
    }

    /// Wakes it with its weights as they were.
    pub(crate) async fn wake(&self, level: SleepLevel, limit: Duration) -> Result<(), String> {
        match level {
            SleepLevel::Ram => self.order("/wake_up", None, limit).await?,
            SleepLevel::Disk => {
                // Room for the weights alone, so that reading them finds the memory that its cache will take.
                self.order("/wake_up?tags=weights", None, limit).await?;
                self.order("/collective_rpc", Some(json!({ "method": "reload_weights" })), limit).await?;
                self.order("/wake_up?tags=kv_cache", None, limit).await?;
                self.order("/reset_prefix_cache", None, limit).await?;
            }
        }
        self.expect(false).await
    }

    async fn expect(&self, asleep: bool) -> Result<(), String> {
        match self.is_sleeping().await? {
            Some(sleeps) if sleeps == asleep => Ok(()),
            _ if asleep => Err("it says that it is awake".into()),
            _ => Err("it says that it is asleep".into()),
        }
    }

    /// Asks for what must succeed.
    pub(crate) async fn order(&self, path: &str, body: Option<Value>, limit: Duration) -> Result<(), String> {
        let (status, _) = self.ask(Method::POST, path, body, limit).await?;
        if status.is_success() { Ok(()) } else { Err(format!("{path} was answered with status {status}")) }
    }

    /// Asks it something; what it says, where that is JSON.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        limit: Duration,
    ) -> Result<(StatusCode, Value), String> {
        let mut request = self.http.request(method, format!("http://{}{path}", self.endpoint)).timeout(limit);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let said = async {
            let answer = request.send().await?;
            let status = answer.status();
            Ok::<_, reqwest::Error>((status, answer.bytes().await?))
        };
        match said.await {
            Ok((status, text)) => Ok((status, serde_json::from_slice(&text).unwrap_or(Value::Null))),
            Err(error) if error.is_timeout() => {
                Err(format!("{path} was not answered within {} s", limit.as_secs()))
            }
            Err(error) => Err(format!("{path} was not answered: {}", Chain(&error.without_url()))),
        }
    }
}
