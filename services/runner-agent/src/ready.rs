//! Readiness by the engine's own health route.

use std::time::{Duration, Instant};

/// The first poll comes at once; later ones the rarer the longer the start takes, so that waiting adds little to
/// any boot and a long one is not pestered.
fn pause(waited: Duration) -> Duration {
    (waited / 200).clamp(Duration::from_millis(10), Duration::from_millis(250))
}

/// A poll that is not answered by then is given up: an engine may accept connections before it can answer.
const POLL: Duration = Duration::from_secs(2);

/// Whether the health route answers 2xx now.
pub(crate) async fn is_healthy(http: &reqwest::Client, endpoint: &str, path: &str) -> bool {
    let answer = http.get(format!("http://{endpoint}{path}")).timeout(POLL).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// Waits until the health route answers 2xx.
pub(crate) async fn wait_ready(http: &reqwest::Client, endpoint: &str, path: &str) {
    let began = Instant::now();
    while !is_healthy(http, endpoint, path).await {
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
