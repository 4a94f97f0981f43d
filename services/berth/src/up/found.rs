//! What there is on this machine, and which of the models can run on it.

use berth_config::{Config, show_bytes};
use berth_runner_agent::Found;
use berth_wire::{EngineKind, ModelSpec};

use super::tell;

/// Prints the host, its accelerators and drivers, and the models.
pub(super) fn tell_all(config: &Config, found: &Found) {
    tell("host", &format!("{} ({})", config.host.name, std::env::consts::ARCH));
    for (n, accelerator) in found.accelerators.iter().enumerate() {
        let what = format!("{}, {} for engines", accelerator.name, show_bytes(accelerator.memory));
        tell(if n == 0 { "accelerators" } else { "" }, &what);
    }
    let working: Vec<&str> = found.drivers.iter().map(|driver| driver.as_str()).collect();
    tell("drivers", &if working.is_empty() { "none that works".into() } else { working.join(", ") });
    for (driver, why) in &found.missing {
        tell("", &format!("{} does not work here: {why}", driver.as_str()));
    }
    for (n, server) in config.external.iter().enumerate() {
        let what = format!(
            "`{}` ({}): its models are served as soon as it lists them",
            server.name,
            server.kind.title()
        );
        tell(if n == 0 { "external" } else { "" }, &what);
    }
    if config.models.is_empty() && config.external.is_empty() {
        tell("models", "none: add [[models]] to the configuration, or give --model FILE.gguf");
    }
    for (n, model) in config.models.iter().enumerate() {
        tell(if n == 0 { "models" } else { "" }, &describe(model, &config.host.labels, found));
    }
}

fn describe(model: &ModelSpec, labels: &[String], found: &Found) -> String {
    let engine = &model.engine;
    let what = match engine.kind {
        EngineKind::Sim => "simulator: its answers are simulated".to_owned(),
        kind => format!("{} by {}", kind.as_str(), engine.driver.as_str()),
    };
    let memory =
        model.memory.map_or_else(|| "memory as its files say or a whole accelerator".into(), show_bytes);
    let slots = if model.concurrency == 1 { "1 slot".into() } else { format!("{} slots", model.concurrency) };
    let mut text = format!("{} ({what}, {memory}, {slots})", model.id);
    if let Some(problem) = problem(model, labels, found) {
        text.push_str(&format!(": cannot run on this machine, {problem}"));
    }
    text
}

fn problem(model: &ModelSpec, labels: &[String], found: &Found) -> Option<String> {
    // Other hosts may join the fleet; of this one it is known.
    if let Some(lacks) = model.labels.iter().find(|label| !labels.contains(label)) {
        return Some(format!("which lacks the label `{lacks}` ([host] labels)"));
    }
    let driver = model.engine.driver;
    if !found.drivers.contains(&driver) {
        return Some(format!("where the {} driver does not work", driver.as_str()));
    }
    let wanted = usize::try_from(model.accelerators).unwrap_or(usize::MAX);
    if found.accelerators.len() < wanted {
        return Some(format!("which has {} of {wanted} accelerators", found.accelerators.len()));
    }
    let mut sizes: Vec<u64> = found.accelerators.iter().map(|accelerator| accelerator.memory).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let room: u64 = sizes.iter().take(wanted).sum();
    model.memory.filter(|needs| *needs > room).map(|_| format!("which has {} for it", show_bytes(room)))
}

#[cfg(test)]
mod tests {
    use berth_config::Config;

    use super::*;

    #[test]
    fn a_model_whose_label_this_host_lacks_is_flagged() {
        let text = "[[models]]\nid = \"m\"\nengine = \"sim\"\nlabels = [\"gpu=a100\", \"fast\"]\n";
        let config = Config::parse(text, "f").unwrap();
        let model = &config.models[0];
        let found = Found::default();
        let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        let told = describe(model, &labels(&["gpu=a100"]), &found);
        assert!(
            told.ends_with("cannot run on this machine, which lacks the label `fast` ([host] labels)"),
            "{told}"
        );
        assert!(!describe(model, &labels(&["fast", "gpu=a100"]), &found).contains("label"));
    }
}
