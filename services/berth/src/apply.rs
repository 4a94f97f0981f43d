//! `berth apply`: a configuration becomes the catalog and the policy of a running fleet.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use berth_bus::{Bus, BusError, amend_json, create_json, get_json};
use berth_config::{Config, show_bytes, show_duration};
use berth_wire::{Event, EventBody, ModelId, ModelSpec, PolicyRecord, PolicySettings, Timestamp, slug};
use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{lease, table};

pub(crate) const EXAMPLES: &str = "\
Of FILE the [[models]] and the limits and times of [scheduler] are applied; everything else belongs to single processes.
Who runs takes them up at once. An engine that runs goes on as it was started; its next start is by the new entry. A
scheduler that is started with another configuration than the last publishes that one; with the same, what was applied
stays.

Examples:
  berth apply fleet.toml             show what would change, and ask
  berth apply fleet.toml --dry-run   show it
  berth apply fleet.toml --yes       do it";

/// How often, and how far apart, the fleet is looked at after somebody else was first.
const LOOKS: usize = 6;
const LOOK: Duration = Duration::from_millis(250);

/// Options of `apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The configuration file.
    file: PathBuf,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Only show what would change.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of lines; needs --yes or --dry-run.
    #[arg(long)]
    json: bool,
}

/// `berth apply`
pub(crate) fn run(args: &ApplyArgs) -> Result<Exit, Failure> {
    // Before anybody is asked.
    let config = Config::load(&args.file)?;
    if args.json && !args.yes && !args.dry_run {
        return Err(Failure::Option("--json asks nothing: say --yes or --dry-run with it".into()));
    }
    lease::at_fleet(&args.fleet, async |bus| {
        let there = There::read(bus).await?;
        let changes = there.changes(&config.models, &config.scheduler.policy());
        if changes.is_empty() || args.dry_run {
            tell(args, &changes, false)?;
            return Ok(Exit::Done);
        }
        if !args.json {
            out!("{}", text(&changes));
        }
        if !args.yes && !agreed()? {
            outln!("nothing was changed");
            return Ok(Exit::Failed);
        }
        let count = changes.len();
        there.commit(bus, &changes, &config).await?;
        if args.json {
            tell(args, &changes, true)?;
        } else {
            outln!("applied {count} change{}", if count == 1 { "" } else { "s" });
        }
        Ok(Exit::Done)
    })
}

fn tell(args: &ApplyArgs, changes: &[Change], applied: bool) -> Result<(), Failure> {
    if args.json {
        outln!("{}", json!({ "changes": changes, "applied": applied }));
    } else if changes.is_empty() {
        outln!("the fleet runs this already");
    } else {
        out!("{}", text(changes));
    }
    Ok(())
}

fn agreed() -> Result<bool, Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::Option(
            "nobody is there to ask: say --yes to apply it, or --dry-run to see it".into(),
        ));
    }
    eprint!("Apply this? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    let read = input.lock().read_line(&mut line);
    read.map_err(|source| Failure::System { what: "cannot read the answer", source })?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// One difference between what the fleet runs and what it is to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
enum Change {
    Added { model: ModelId },
    Removed { model: ModelId },
    Changed { model: ModelId, fields: Vec<Field> },
    Policy { fields: Vec<Field> },
}

/// A field with what it was and what it becomes.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Field {
    field: String,
    from: Value,
    to: Value,
}

/// The fields in which two values differ, by their paths.
fn differences(path: &str, from: &Value, to: &Value, found: &mut Vec<Field>) {
    match (from, to) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let of = |side: &serde_json::Map<String, Value>| side.get(name).cloned().unwrap_or_default();
                differences(&path, &of(a), &of(b), found);
            }
        }
        (a, b) if a != b => found.push(Field { field: path.into(), from: a.clone(), to: b.clone() }),
        _ => {}
    }
}

fn fields<T: Serialize>(from: &T, to: &T) -> Vec<Field> {
    let value = |of: &T| serde_json::to_value(of).unwrap_or_default();
    let mut found = Vec::new();
    differences("", &value(from), &value(to), &mut found);
    found
}

/// A field in the units that a file has them in.
fn shown(field: &Field) -> String {
    let Field { field: path, from, to } = field;
    let name = path.rsplit('.').next().unwrap_or(path);
    let in_bytes = ["memory", "ram", "shm"].contains(&name);
    let value = |value: &Value| match (value, value.as_u64()) {
        (Value::Null, _) => "none".to_owned(),
        (_, Some(ms)) if name.ends_with("_ms") => show_duration(Duration::from_millis(ms)),
        (_, Some(bytes)) if in_bytes => show_bytes(bytes),
        (value, _) => value.to_string(),
    };
    format!("    {}: {} -> {}", path.strip_suffix("_ms").unwrap_or(path), value(from), value(to))
}

fn text(changes: &[Change]) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&table::plain(&line));
        text.push('\n');
    };
    for change in changes {
        match change {
            Change::Added { model } => line(format!("+ {model}")),
            Change::Removed { model } => line(format!("- {model}")),
            Change::Changed { model, fields } => {
                line(format!("~ {model}"));
                fields.iter().for_each(|field| line(shown(field)));
            }
            Change::Policy { fields } => {
                line("~ [scheduler]".into());
                fields.iter().for_each(|field| line(shown(field)));
            }
        }
    }
    text
}

/// What the fleet runs, with the revisions that a change is guarded by.
struct There {
    models: BTreeMap<ModelId, (ModelSpec, u64)>,
    policy: Option<(PolicyRecord, u64)>,
}

impl There {
    async fn read(bus: &Bus) -> Result<Self, Failure> {
        // First the guard: whoever writes after it is noticed.
        let policy = get_json::<PolicyRecord>(&bus.bucket("policy").await?, PolicyRecord::KEY).await?;
        let store = bus.bucket("catalog").await?;
        let failed = |error: &dyn std::fmt::Display| {
            Failure::Input(format!("NATS does not list the catalog: {error}"))
        };
        let keys: Vec<String> =
            store.keys().await.map_err(|e| failed(&e))?.try_collect().await.map_err(|e| failed(&e))?;
        let mut models = BTreeMap::new();
        for key in keys {
            if let Some((spec, revision)) = get_json::<ModelSpec>(&store, &key).await? {
                models.insert(spec.id.clone(), (spec, revision));
            }
        }
        Ok(Self { models, policy })
    }

    fn changes(&self, wanted: &[ModelSpec], policy: &PolicySettings) -> Vec<Change> {
        let mut changes = Vec::new();
        for spec in wanted {
            match self.models.get(&spec.id) {
                None => changes.push(Change::Added { model: spec.id.clone() }),
                Some((there, _)) if there != spec => {
                    changes.push(Change::Changed { model: spec.id.clone(), fields: fields(there, spec) });
                }
                Some(_) => {}
            }
        }
        // What hosts found is theirs.
        let ours = self.models.values().filter(|(spec, _)| !spec.is_found());
        let gone = ours.filter(|(spec, _)| !wanted.iter().any(|other| other.id == spec.id));
        changes.extend(gone.map(|(spec, _)| Change::Removed { model: spec.id.clone() }));
        let fields = match &self.policy {
            Some((record, _)) => fields(&record.policy, policy),
            None => Vec::new(),
        };
        if !fields.is_empty() {
            changes.push(Change::Policy { fields });
        }
        changes
    }

    async fn commit(&self, bus: &Bus, changes: &[Change], config: &Config) -> Result<(), Failure> {
        let now = Timestamp::from(SystemTime::now());
        let policy = bus.bucket("policy").await?;
        let configured =
            self.policy.as_ref().map(|(record, _)| record.configured.clone()).unwrap_or_default();
        let record = PolicyRecord { configured, at: now, policy: config.scheduler.policy() };
        let won = match &self.policy {
            Some((_, revision)) => {
                amend_json(&policy, PolicyRecord::KEY, &record, *revision).await?.is_some()
            }
            None => match create_json(&policy, PolicyRecord::KEY, &record).await {
                Ok(_) => true,
                Err(BusError::Conflict { .. }) => false,
                Err(error) => return Err(error.into()),
            },
        };
        if !won {
            return Err(self.conflict(bus, "nothing was changed").await);
        }
        let store = bus.bucket("catalog").await?;
        for change in changes {
            let (model, spec) = match change {
                Change::Added { model } | Change::Changed { model, .. } => {
                    (model, config.models.iter().find(|spec| spec.id == *model))
                }
                Change::Removed { model } => (model, None),
                Change::Policy { .. } => continue,
            };
            let key = slug::encode(model.as_str());
            let revision = self.models.get(model).map(|(_, revision)| *revision);
            let written = match (spec, revision) {
                (Some(spec), Some(revision)) => amend_json(&store, &key, spec, revision).await?.is_some(),
                (Some(spec), None) => match create_json(&store, &key, spec).await {
                    Ok(_) => true,
                    Err(BusError::Conflict { .. }) => false,
                    Err(error) => return Err(error.into()),
                },
                (None, revision) => store.delete_expect_revision(&key, revision).await.is_ok(),
            };
            if !written {
                let what = format!("{model} and what comes after it were not changed");
                return Err(self.conflict(bus, &what).await);
            }
        }
        let models = u32::try_from(config.models.len()).unwrap_or(u32::MAX);
        let body = EventBody::CatalogApplied { models };
        let subject = bus.subjects.event(body.kind(), &body.id());
        bus.publish_json(subject, &Event { at: now, body }).await?;
        Ok(())
    }

    /// Somebody else was first; what they changed is told, as far as it can be seen.
    async fn conflict(&self, bus: &Bus, what: &str) -> Failure {
        let changed = text(&self.changed_since(bus).await);
        let changed = match changed.is_empty() {
            true => String::new(),
            false => format!("; since you looked, the fleet was changed:\n{}", changed.trim_end()),
        };
        Failure::Input(format!(
            "somebody else changed the catalog meanwhile, and {what}{changed}\n\
             run it again: it shows what your file would change of the fleet as it is now"
        ))
    }

    /// What has become of the fleet, once it stays the same: who was first is perhaps still writing.
    async fn changed_since(&self, bus: &Bus) -> Vec<Change> {
        let mut last = Vec::new();
        for _ in 0..LOOKS {
            let Ok(now) = Self::read(bus).await else { break };
            let models: Vec<ModelSpec> = now.models.into_values().map(|(spec, _)| spec).collect();
            let Some((record, _)) = now.policy else { break };
            let changes = self.changes(&models, &record.policy);
            if !changes.is_empty() && changes == last {
                break;
            }
            last = changes;
            tokio::time::sleep(LOOK).await;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "f").unwrap()
    }

    #[test]
    fn differences_name_the_field_and_both_values() {
        let before =
            config("[[models]]\nid = \"a\"\nengine = \"sim\"\n[[models]]\nid = \"b\"\nengine = \"sim\"\n");
        let after = config(
            "[scheduler]\nmax_wait = \"7s\"\n[[models]]\nid = \"a\"\nengine = \"sim\"\nconcurrency = 9\n\
             [[models]]\nid = \"c\"\nengine = \"sim\"\n",
        );
        let record =
            PolicyRecord { configured: String::new(), at: Timestamp(0), policy: before.scheduler.policy() };
        let models = before.models.iter().map(|spec| (spec.id.clone(), (spec.clone(), 1))).collect();
        let there = There { models, policy: Some((record, 1)) };
        assert!(there.changes(&before.models, &before.scheduler.policy()).is_empty());
        let told = text(&there.changes(&after.models, &after.scheduler.policy()));
        for part in ["~ a\n", "concurrency: 4 -> 9", "+ c\n", "- b\n", "max_wait: 5m -> 7s"] {
            assert!(told.contains(part), "{part} in:\n{told}");
        }
    }
}
