//! Asking the leader, and waiting in front of a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use berth_bus::{Bus, BusError};
use berth_wire::{OperateReply, OperateRequest};
use serde::Serialize;

use crate::exit::Failure;

/// A new leader needs a moment to take over.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether anything has changed.
const LOOK: Duration = Duration::from_millis(500);

/// Asks whoever leads.
pub(crate) async fn leader(bus: &Bus, request: &OperateRequest) -> Result<OperateReply, Failure> {
    match bus.request(bus.subjects.operate(), request, PATIENCE).await {
        Ok(OperateReply::Refused(error)) => Err(Failure::Input(error.message)),
        Ok(reply) => Ok(reply),
        Err(BusError::NoResponders { .. } | BusError::TimedOut { .. }) => Err(Failure::Input(
            "no scheduler leads there: start one (`berth scheduler`, or `berth up`), or wait a moment".into(),
        )),
        Err(error) => Err(error.into()),
    }
}

/// A scheduler of another version.
pub(crate) fn unexpected() -> Failure {
    Failure::Input("the scheduler is of another version: its answer does not fit the question".into())
}

/// As over HTTP.
pub(crate) fn json(shown: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(shown).map_err(|error| Failure::Input(error.to_string()))
}

/// Shows a picture, and shows it anew whenever it has changed: in place on a terminal, one below the other elsewhere.
/// Ends with an error, or never.
pub(crate) async fn watch(
    in_place: bool,
    mut picture: impl AsyncFnMut() -> Result<String, Failure>,
) -> Result<(), Failure> {
    let in_place = in_place && std::io::stdout().is_terminal();
    let mut last = None;
    loop {
        let now = picture().await?;
        if last.as_ref() != Some(&now) {
            if in_place {
                // From the upper left, each line to its end, and nothing below.
                out!("\u{1b}[H{}\u{1b}[J", now.replace('\n', "\u{1b}[K\n"));
            } else {
                out!("{now}");
            }
            last = Some(now);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A time in about four characters.
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..100 => format!("{whole}s"),
        100..6000 => format!("{}m", whole / 60),
        6000..172_800 => format!("{}h", whole / 3600),
        _ => format!("{}d", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(
            [0.04, 9.96, 59.0, 600.0, 7200.0, 400_000.0].map(span),
            ["0.0s", "10.0s", "59s", "10m", "2h", "4d"]
        );
    }
}
