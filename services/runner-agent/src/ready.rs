//! Readiness by the engine's own health route.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use berth_telemetry::Chain;

/// The first poll comes at once; later ones the rarer the longer the start takes, so that waiting adds little to
/// any boot and a long one is not pestered.
fn pause(waited: Duration) -> Duration {
    (waited / 200).clamp(Duration::from_millis(10), Duration::from_millis(250))
}

/// A poll that is not answered by then is given up: an engine may accept connections before it can answer.
const POLL: Duration = Duration::from_secs(2);

/// Whether the health route answers 2xx now.
pub(crate) async fn is_healthy(http: &reqwest::Client, endpoint: &str, path: &str) -> bool {
    ask(http, endpoint, path).await.is_ok()
}

/// Asks the health route; says what came instead of a 2xx.
async fn ask(http: &reqwest::Client, endpoint: &str, path: &str) -> Result<(), String> {
    let error = match http.get(format!("http://{endpoint}{path}")).timeout(POLL).send().await {
        Ok(answer) if answer.status().is_success() => return Ok(()),
        Ok(answer) => return Err(format!("it answered with status {}", answer.status())),
        Err(error) => error,
    };
    Err(if error.is_timeout() {
        format!("it did not answer within {} s", POLL.as_secs())
    } else if error.is_connect() {
        "it took no connection".into()
    } else {
        format!("what it answered is not HTTP: {}", Chain(&error.without_url()))
    })
}

/// Waits until the health route answers 2xx; `last` is what came instead so far.
pub(crate) async fn wait_ready(
    http: &reqwest::Client,
    endpoint: &str,
    path: &str,
    last: &RefCell<Option<String>>,
) {
    let began = Instant::now();
    while let Err(what) = ask(http, endpoint, path).await {
        *last.borrow_mut() = Some(what);
        tokio::time::sleep(pause(began.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_adds_little_to_any_boot() {
        assert_eq!(pause(Duration::ZERO), Duration::from_millis(10));
        assert_eq!(pause(Duration::from_secs(2)), Duration::from_millis(10));
        assert!(pause(Duration::from_secs(9)) < Duration::from_millis(50));
        assert_eq!(pause(Duration::from_secs(600)), Duration::from_millis(250));
    }
}
