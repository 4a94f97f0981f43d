//! Asking the leader, and waiting in front of a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use berth_bus::{Bus, BusError};
use berth_wire::{OperateReply, OperateRequest};
use serde::Serialize;
use terminal_size::{Height, Width, terminal_size};

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
        let mut now = picture().await?;
        if let Some((Width(columns), Height(rows))) = terminal_size().filter(|_| in_place) {
            now = cropped(&now, columns.into(), rows.into());
        }
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

/// As much as a terminal shows without scrolling: what is cut off at the right or below is not seen, but nothing wraps.
fn cropped(text: &str, columns: usize, rows: usize) -> String {
    let lines = text.lines().count();
    let fits = if lines < rows { lines } else { rows.saturating_sub(2) };
    let mut shown: String = text.lines().take(fits).fold(String::new(), |mut shown, line| {
        shown.extend(line.chars().take(columns));
        shown.push('\n');
        shown
    });
    if fits < lines {
        let more = format!("({} lines more)\n", lines - fits);
        shown.extend(more.chars().take(columns.max(1)));
    }
    shown
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
    fn a_small_terminal_shows_what_fits_and_says_what_does_not() {
        let text = "one two\nthree\nfour\nfive\n";
        assert_eq!(cropped(text, 80, 5), text);
        assert_eq!(cropped(text, 5, 5), "one t\nthree\nfour\nfive\n");
        assert_eq!(cropped(text, 80, 4), "one two\nthree\n(2 lines more)\n");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(
            [0.04, 9.96, 59.0, 600.0, 7200.0, 400_000.0].map(span),
            ["0.0s", "10.0s", "59s", "10m", "2h", "4d"]
        );
    }
}
