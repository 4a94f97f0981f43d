//! `berth check`: what a configuration amounts to, or what is wrong with it.

use berth_config::{Config, ExternalConfig, KeySource, show_bytes};
use berth_wire::ModelSpec;

use crate::cli::CheckArgs;
use crate::exit::{Exit, Failure};
use crate::{setup, table};

const NO_MODELS: &str = "no client can be answered without a model: add one, as in\n\n  [[models]]\n  id = \"demo\"\n  \
    engine = \"sim\"\n";

/// Checks the file and prints a summary.
pub(crate) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    if args.schema {
        outln!("{:#}", berth_config::schema());
        return Ok(Exit::Done);
    }
    let named = args.file.as_deref().or(args.config.as_deref());
    let Some(path) = setup::config_file(named) else {
        return Err(Failure::Option(
            "no configuration to check: name one, as in `berth check my.toml`".into(),
        ));
    };
    let config = Config::load(&path)?;
    out!("{}", summary(&path.display().to_string(), &config));
    for note in &config.notes {
        outln!("\nnote: {note}");
    }
    Ok(Exit::Done)
}

fn summary(name: &str, config: &Config) -> String {
    let count = config.models.len();
    let listen: Vec<String> = config.gateway.listen.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{name}: ok, {count} model{}\nendpoint {}, host {}\n",
        if count == 1 { "" } else { "s" },
        listen.join(", "),
        config.host.name,
    );
    text.push_str(&keys(config));
    if count == 0 && config.external.is_empty() {
        text.push_str(NO_MODELS);
    } else if count > 0 {
        text.push('\n');
        let rows: Vec<Vec<String>> = config.models.iter().map(row).collect();
        text.push_str(&table::render(
            &["MODEL", "ENGINE", "DRIVER", "MEMORY", "ACCELERATORS", "SLOTS", "CONTEXT", "RUNS"],
            &rows,
        ));
    }
    if !config.external.is_empty() {
        text.push('\n');
        let rows: Vec<Vec<String>> = config.external.iter().map(server).collect();
        text.push_str(&table::render(&["EXTERNAL", "KIND", "URL", "MODELS", "SLOTS", "KEY"], &rows));
    }
    text
}

fn server(entry: &ExternalConfig) -> Vec<String> {
    vec![
        entry.name.clone(),
        entry.kind.as_str().into(),
        entry.url.clone(),
        if entry.models.is_empty() { "all it has".into() } else { entry.models.join(", ") },
        format!("{} each", entry.concurrency),
        match &entry.key {
            None => "-".into(),
            Some(KeySource::Env(name)) => format!("${name}"),
            Some(KeySource::File(path)) => path.display().to_string(),
        },
    ]
}

/// Who may come in.
fn keys(config: &Config) -> String {
    match config.gateway.keys.len() {
        _ if config.gateway.open => "open to everybody who reaches it\n".into(),
        0 => String::new(),
        1 => "1 API key\n".into(),
        more => format!("{more} API keys\n"),
    }
}

fn row(model: &ModelSpec) -> Vec<String> {
    let mut names = vec![model.id.as_str()];
    names.extend(model.aliases.iter().map(String::as_str));
    names.extend(model.adapters.iter().map(|adapter| adapter.id.as_str()));
    let memory = model.memory.map_or_else(|| "all of it".into(), show_bytes);
    vec![
        names.join(", "),
        format!("{}{}", model.engine.kind.as_str(), if model.pin { " (pinned)" } else { "" }),
        model.engine.driver.as_str().into(),
        memory,
        model.accelerators.to_string(),
        model.concurrency.to_string(),
        model.context.map_or_else(|| "-".into(), |tokens| tokens.to_string()),
        runs(model),
    ]
}

/// The image and command line, as it would be typed; values of `env` are not shown.
fn runs(model: &ModelSpec) -> String {
    let engine = &model.engine;
    let words = engine.image.iter().chain(&engine.command).chain(&engine.args);
    words
        .map(|word| if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.clone() })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_without_models_says_how_to_add_one() {
        let text = summary("berth.toml", &Config::empty());
        assert!(text.contains("0 models\n") && text.contains("\n  [[models]]\n  id = "), "{text}");
        let model = text.split_once("\n\n").unwrap().1;
        assert_eq!(Config::parse(model, "f").unwrap().models.len(), 1, "what it says works");
    }

    #[test]
    fn the_summary_names_every_model_and_how_it_runs() {
        let text = summary("berth.toml", &Config::builtin());
        assert!(text.starts_with("berth.toml: ok, 2 models\n"), "{text}");
        for part in
            ["demo", "{berth} sim-engine", "qwen2.5-0.5b, qwen2.5-0.5b-instruct", "2.0 GiB", "-hf Qwen/"]
        {
            assert!(text.contains(part), "`{part}` in:\n{text}");
        }
    }
}
