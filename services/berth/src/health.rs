//! `berth health report`: what health has found, and how long requests have waited lately.

use std::time::Duration;

use berth_bus::{Bus, BusOptions, Entries};
use berth_config::show_time;
use berth_health::{Quantiles, Slot};
use berth_wire::Timestamp;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::cli::{RoleArgs, StatusArgs};
use crate::exit::{Exit, Failure};
use crate::{status, table};

const PATIENCE: Duration = Duration::from_secs(3);
/// Slots that are shown: an hour of them.
const SHOWN: usize = 12;

pub(crate) const EXAMPLES: &str = "\
Examples:
  berth health --listen 127.0.0.1:8422     run it, with metrics on that address
  berth health report                      alerts, parts of the fleet, and the last hour's waits
  berth health report --json               the same and more, of the last day";

/// Options of `health`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    pub(crate) role: RoleArgs,
    #[command(subcommand)]
    pub(crate) what: Option<What>,
}

/// What else than to run.
#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Show alerts, whether the fleet's parts are there, and the last hour's waits.
    Report(StatusArgs),
}

/// Asks and prints.
pub(crate) fn report(args: &StatusArgs) -> Result<Exit, Failure> {
    let options = status::options(&args.fleet)?;
    let (health, slots) = actix_rt::System::new().block_on(Box::pin(look(&options)))?;
    let mut slots: Vec<&Slot> = slots.values().map(AsRef::as_ref).collect();
    slots.sort_by_key(|slot| slot.at);
    if args.json {
        outln!("{}", json!({ "health": health, "trends": slots }));
    } else {
        out!("{}", text(&health, &slots));
    }
    Ok(Exit::Done)
}

/// What health says of the fleet (null where none runs), and the slots of the last day.
async fn look(options: &BusOptions) -> Result<(Value, Entries<Slot>), Failure> {
    let bus = Bus::connect(options, "berth-health-report").await?;
    let slots = status::entries::<Slot>(&bus, "trends").await?;
    let health = ask(&bus).await.unwrap_or_default();
    bus.close().await;
    Ok((health, slots))
}

async fn ask(bus: &Bus) -> Option<Value> {
    let asked = |subject: String| async move {
        let answer = timeout(PATIENCE, bus.client.request(subject, Default::default())).await.ok()?.ok()?;
        serde_json::from_slice::<Value>(&answer.payload).ok()
    };
    let info = asked("$SRV.INFO.berth-health".into()).await?;
    let subject = info.pointer("/endpoints/0/subject")?.as_str()?.to_owned();
    asked(subject).await
}

fn text(health: &Value, slots: &[&Slot]) -> String {
    let word = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let list = |path: &str| health.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut text = if health.is_null() {
        "no health service answers: start `berth health`\n".to_owned()
    } else {
        let rows: Vec<_> = list("/components")
            .iter()
            .map(|part| {
                let ready = part.get("ready").and_then(Value::as_bool) == Some(true);
                vec![
                    word(part, "name"),
                    if ready { "ready" } else { "NOT READY" }.into(),
                    word(part, "detail"),
                ]
            })
            .collect();
        table::render(&["PART", "STATE", "DETAIL"], &rows)
    };
    let alerts: Vec<_> = list("/found/alerts")
        .iter()
        .map(|alert| {
            let for_s = alert.get("for_s").and_then(Value::as_u64).unwrap_or_default();
            vec![word(alert, "alert"), word(alert, "about"), format!("{for_s}s"), word(alert, "message")]
        })
        .collect();
    text.push('\n');
    if alerts.is_empty() {
        text.push_str("no alerts\n");
    } else {
        text.push_str(&table::render(&["ALERT", "ABOUT", "FOR", "WHAT"], &alerts));
    }
    let recent = slots.get(slots.len().saturating_sub(SHOWN)..).unwrap_or_default();
    let mut rows = Vec::new();
    for slot in recent {
        for (model, measures) in &slot.models {
            let cell = |name: &str| measures.get(name).map_or_else(|| "-".into(), shown);
            let count = measures.get("first_token").map_or(0, |measure| measure.count);
            rows.push(vec![
                minute(slot.at),
                model.clone(),
                count.to_string(),
                cell("wait"),
                cell("load"),
                cell("first_token"),
            ]);
        }
    }
    text.push('\n');
    if rows.is_empty() {
        text.push_str("no requests in the last hour\n");
    } else {
        let headings =
            ["FROM", "MODEL", "REQUESTS", "WAIT p50/p95/p99", "LOAD p50/p95/p99", "FIRST TOKEN p50/p95/p99"];
        text.push_str(&table::render(&headings, &rows));
    }
    if let Some(last) = recent.last() {
        let rows: Vec<_> = last
            .accelerators
            .iter()
            .map(|(name, used)| {
                vec![
                    name.clone(),
                    format!("{:.0}%", used.busy * 100.0),
                    format!("{:.0}%", used.reserved * 100.0),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&table::render(&["ACCELERATOR", "BUSY", "RESERVED"], &rows));
        text.push_str(&format!("\n{} engines started or woken since {}\n", last.swaps, minute(last.at)));
    }
    text
}

fn minute(at: Timestamp) -> String {
    show_time(at).get(..16).map(|text| format!("{}Z", text.replace('T', " "))).unwrap_or_default()
}

fn shown(of: &Quantiles) -> String {
    [of.p50, of.p95, of.p99].map(seconds).join(" / ")
}

fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.0} ms", value * 1000.0) } else { format!("{value:.1} s") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn trends_are_shown_by_slot_and_model() {
        let of = Quantiles { count: 3, p50: 0.25, p95: 2.0, p99: 4.5 };
        let measures = BTreeMap::from([("wait".to_owned(), of), ("first_token".to_owned(), of)]);
        let slot = Slot {
            at: Timestamp(1_700_000_100_000),
            models: BTreeMap::from([("m".to_owned(), measures)]),
            swaps: 2,
            ..Slot::default()
        };
        let shown = text(&Value::Null, &[&slot]);
        assert!(shown.contains("start `berth health`") && shown.contains("no alerts"), "{shown}");
        let row: Vec<_> = shown.lines().find(|line| line.contains(" m ")).unwrap().split("  ").collect();
        let cells: Vec<_> = row.into_iter().map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells[1..], ["m", "3", "250 ms / 2.0 s / 4.5 s", "-", "250 ms / 2.0 s / 4.5 s"]);
        assert!(shown.contains("2 engines started or woken"), "{shown}");
    }
}
