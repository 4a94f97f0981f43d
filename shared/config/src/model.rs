//! One `[[models]]` entry: its template with its own fields over it, checked.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use crate::spanned::Spanned;
use berth_wire::{Driver, EngineKind, EngineSpec, ModelId, ModelSpec, Route, Silence};

use crate::adapter;
use crate::container;
use crate::context;
use crate::env;
use crate::placeholder::{self, PLACEHOLDERS};
use crate::problem::{Findings, suggest};
use crate::raw::RawModel;
use crate::sleep;
use crate::template::{self, Inputs};
use crate::value::{Size, Words};

/// Slots or accelerators beyond any that there are.
pub(crate) const MOST: u32 = 65_536;
/// Memory beyond what any machine has.
pub(crate) const MOST_MEMORY: u64 = 64 << 40;

/// What a model takes over from the rest of the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) idle_ttl: Option<Duration>,
    pub(crate) asleep_ttl: Option<Duration>,
    pub(crate) stop_grace: Duration,
    /// Relative volume sources start here.
    pub(crate) base: &'a Path,
}

/// Builds the complete entry; what is wrong goes to `findings`, which then keep the result from being used.
pub(crate) fn resolve(raw: &RawModel, around: Surroundings<'_>, findings: &mut Findings<'_>) -> ModelSpec {
    let kind = *raw.engine.get_ref();
    let id = raw.id.get_ref().clone();
    check_name(&raw.id, "id", findings);
    for alias in &raw.aliases.0 {
        check_name(alias, "alias", findings);
    }
    let driver = raw.driver.as_ref().map_or_else(
        || template::default_driver(kind, raw.image.is_some(), raw.command.is_some()),
        |driver| *driver.get_ref(),
    );
    let concurrency =
        positive(raw.concurrency.as_ref(), template::default_concurrency(kind), "concurrency", findings);
    let accelerators = positive(raw.accelerators.as_ref(), 1, "accelerators", findings);
    let context = raw.context.as_ref().map(|context| positive(Some(context), 1, "context", findings));
    if raw.port.as_ref().is_some_and(|port| *port.get_ref() == 0) {
        let span = raw.port.as_ref().map(Spanned::span).unwrap_or_default();
        findings.add(span, "port 0 is no port", "name the port that the engine listens on in its container");
    }
    let served_name = raw.served_name.as_ref().map_or_else(|| id.clone(), |name| name.get_ref().clone());
    let own_args = raw.args.texts();
    let own_words =
        [raw.command.as_ref().map(|words| words.get_ref().texts()).unwrap_or_default(), own_args.clone()]
            .concat();
    let template = template::of(
        kind,
        Inputs {
            driver,
            id: &id,
            served_name: &served_name,
            concurrency,
            context,
            accelerators,
            own_words: &own_words,
        },
    );
    let adapters = adapter::resolve(raw, kind, driver, around.base, findings);
    let kept = context::resolve(raw, kind, driver, findings);
    check_flags(raw, kind, findings);
    check_driver(raw, kind, driver, template.image.is_some(), findings);
    for word in raw.command.iter().flat_map(|words| &words.get_ref().0).chain(&raw.args.0).chain(&raw.env.0) {
        check_placeholders(word, context.is_some(), findings);
    }
    for entry in &raw.env.0 {
        check_env(entry, findings);
    }
    ModelSpec {
        id: ModelId::from(id),
        aliases: raw.aliases.texts(),
        engine: EngineSpec {
            kind,
            driver,
            image: match driver {
                Driver::Docker => {
                    raw.image.as_ref().map(|i| i.get_ref().clone()).or(template.image.map(Into::into))
                }
                Driver::Process | Driver::External => None,
            },
            command: raw.command.as_ref().map_or(template.command, |words| words.get_ref().texts()),
            args: template::followed(
                kind,
                [template.args, adapters.args(kind, &own_words)].concat(),
                own_args,
            ),
            env: raw.env.texts().into_iter().chain(adapters.env(kind, &raw.env.texts())).collect(),
            volumes: raw
                .volumes
                .0
                .iter()
                .map(|volume| resolve_volume(volume, around.base, findings))
                .collect(),
            port: raw.port.as_ref().map_or(template.port, |port| *port.get_ref()),
            health_path: health_path(raw, template.health_path, findings),
            served_name,
            routes: routes(raw, findings),
            container: container::resolve(raw, kind, driver, findings),
            start_timeout: start_timeout(raw, template.start_timeout, findings),
            stop_grace: raw.stop_grace.map_or(around.stop_grace, |span| span.0),
            sleep: sleep::resolve(raw, kind, findings),
        },
        memory: memory(raw, findings).or(template::default_memory(kind)),
        accelerators,
        concurrency,
        context,
        idle_ttl: raw.idle_ttl.map_or(around.idle_ttl, |ttl| ttl.0),
        asleep_ttl: raw.asleep_ttl.map_or(around.asleep_ttl, |ttl| ttl.0),
        pin: raw.pin,
        replicas: replicas(raw, findings),
        labels: raw.labels.texts(),
        adapters: adapters.list,
        max_adapters: adapters.at_once,
        keep_context: kept.of_all,
        leases_keep_context: kept.by_lease,
        silence: silence(raw, findings),
    }
}

const EXTERNAL: &str = "add [[external]] with its url, as in url = \"http://127.0.0.1:11434\", instead of this entry (`berth add URL` does)";

pub(crate) fn check_name(name: &Spanned<String>, what: &str, findings: &mut Findings<'_>) {
    let text = name.get_ref();
    let why = if text.is_empty() {
        "is empty"
    } else if text.len() > 200 {
        "is longer than 200 bytes"
    } else if text.trim() != text || text.chars().any(char::is_control) {
        "begins or ends with a space, or holds a control character"
    } else if text.contains(['{', '}']) {
        "holds a brace, which would be read as a placeholder"
    } else {
        return;
    };
    findings.add(
        name.span(),
        format!("this {what} {why}"),
        "choose the name that clients will send as `model`, as in \"qwen2.5-7b\"",
    );
}

pub(crate) fn positive(
    value: Option<&Spanned<u32>>,
    default: u32,
    what: &str,
    findings: &mut Findings<'_>,
) -> u32 {
    let Some(value) = value else { return default };
    if *value.get_ref() == 0 {
        findings.add(value.span(), format!("{what} must be at least 1"), format!("the default is {default}"));
    }
    if what != "context" && *value.get_ref() > MOST {
        findings.add(
            value.span(),
            format!("{what} of {} is more than any engine has", value.get_ref()),
            format!("it may be 1 to {MOST}; the default is {default}"),
        );
    }
    *value.get_ref()
}

fn replicas(raw: &RawModel, findings: &mut Findings<'_>) -> Option<u32> {
    let replicas = raw.replicas.as_ref()?;
    if *replicas.get_ref() == 0 {
        let help = "leave it out for as many as pay; to serve a model not at all, remove its entry";
        findings.add(replicas.span(), "replicas must be at least 1", help);
    }
    Some(*replicas.get_ref())
}

fn memory(raw: &RawModel, findings: &mut Findings<'_>) -> Option<u64> {
    let memory = raw.memory.as_ref()?;
    if memory.get_ref().0 == 0 {
        findings.add(
            memory.span(),
            "a model needs some memory",
            "say how much of the accelerator it takes, or leave `memory` out for all of it",
        );
    }
    check_memory(memory, findings);
    Some(memory.get_ref().0)
}

/// Refuses what no machine has.
pub(crate) fn check_memory(memory: &Spanned<Size>, findings: &mut Findings<'_>) {
    if memory.get_ref().0 > MOST_MEMORY {
        findings.add(memory.span(), "no machine has so much memory", "it may be 64TiB at most");
    }
}

fn silence(raw: &RawModel, findings: &mut Findings<'_>) -> Silence {
    let default = Silence::default();
    let mut limit = |span: Option<&Spanned<crate::value::Span>>, default: Duration| {
        let Some(span) = span else { return default };
        if span.get_ref().0 < Duration::from_secs(1) {
            let help = format!(
                "say how long it may send nothing, or leave it out for {}",
                crate::show_duration(default)
            );
            findings.add(span.span(), "no engine is that steady: at least a second", help);
        }
        span.get_ref().0
    };
    Silence {
        first_token: limit(raw.first_token_timeout.as_ref(), default.first_token),
        token: limit(raw.token_timeout.as_ref(), default.token).min(default.token),
    }
}

fn start_timeout(raw: &RawModel, default: Duration, findings: &mut Findings<'_>) -> Duration {
    let Some(span) = &raw.start_timeout else { return default };
    if span.get_ref().0 < Duration::from_secs(1) {
        findings.add(
            span.span(),
            "no engine starts in less than a second",
            format!("say how long it may take, or leave it out for {}", crate::show_duration(default)),
        );
    }
    span.get_ref().0
}

fn health_path(raw: &RawModel, default: &str, findings: &mut Findings<'_>) -> String {
    let Some(path) = &raw.health_path else { return default.into() };
    if !path.get_ref().starts_with('/') {
        findings.add(path.span(), "a health path begins with `/`", "as in health_path = \"/health\"");
    }
    path.get_ref().clone()
}

/// The routes that a model says its engine serves: of a custom one nobody else knows, and others get new ones.
fn routes(raw: &RawModel, findings: &mut Findings<'_>) -> Option<Vec<Route>> {
    read_routes(raw.routes.as_ref()?, findings)
}

/// Routes by their paths.
pub(crate) fn read_routes(words: &Spanned<Words>, findings: &mut Findings<'_>) -> Option<Vec<Route>> {
    if words.get_ref().0.is_empty() {
        findings.add(
            words.span(),
            "an engine serves at least one route",
            "name its routes, as in routes = [\"/v1/embeddings\"], or leave it out for those of its kind",
        );
    }
    let mut routes = Vec::new();
    for word in &words.get_ref().0 {
        match Route::of_path(word.get_ref()) {
            Some(route) if routes.contains(&route) => {
                findings.add(word.span(), "this route is named twice", "remove one");
            }
            Some(route) => routes.push(route),
            None => {
                let known = Route::ALL.map(Route::path);
                let help =
                    format!("{}; any other path is reached by /upstream", suggest(word.get_ref(), &known));
                findings.add(word.span(), format!("unknown route `{}`", word.get_ref()), help);
            }
        }
    }
    Some(routes)
}

/// Flags that say what Berth must know or decides itself.
fn check_flags(raw: &RawModel, kind: EngineKind, findings: &mut Findings<'_>) {
    let words: Vec<&Spanned<String>> =
        raw.command.iter().flat_map(|words| &words.get_ref().0).chain(&raw.args.0).collect();
    for (n, word) in words.iter().enumerate() {
        let text = word.get_ref();
        let value = match text.split_once('=') {
            Some((_, value)) => Some(value),
            None => words.get(n + 1).map(|next| next.get_ref().as_str()),
        };
        if template::is_flag(text, template::slot_flags(kind)) && value != Some("{concurrency}") {
            findings.add(
                word.span(),
                format!("Berth must know how many requests the engine takes, and passes `{text}` itself"),
                "write `concurrency = N` in this model instead, without this argument",
            );
        }
        if kind != EngineKind::Custom && template::is_flag(text, &["--port"]) && value != Some("{port}") {
            findings.add(
                word.span(),
                "Berth chooses the port and passes it itself",
                "leave `--port` out; `port = N` in this model changes the one inside a container",
            );
        }
    }
}

fn check_driver(
    raw: &RawModel,
    kind: EngineKind,
    driver: Driver,
    has_image: bool,
    findings: &mut Findings<'_>,
) {
    let place = raw.driver.as_ref().map_or_else(|| raw.engine.span(), Spanned::span);
    if kind == EngineKind::Ollama {
        findings.add(
            raw.engine.span(),
            "Berth does not run Ollama: it finds its models on one that runs",
            EXTERNAL,
        );
        return;
    }
    match driver {
        Driver::External => {
            findings.add(
                place,
                "the models of a server that somebody else runs are found, not listed",
                EXTERNAL,
            );
        }
        Driver::Docker => {
            if raw.image.is_none() && !has_image {
                findings.add(
                    place,
                    format!("engine \"{}\" on driver \"docker\" needs an image", kind.as_str()),
                    "add image = \"name:tag\", or say driver = \"process\" with a command",
                );
            }
            if let Some(image) = &raw.image
                && (image.get_ref().trim().is_empty() || image.get_ref().contains(char::is_whitespace))
            {
                findings.add(
                    image.span(),
                    "this is no image name",
                    "write it as in \"vllm/vllm-openai:latest\"",
                );
            }
        }
        Driver::Process => {
            if let Some(image) = &raw.image {
                findings.add(
                    image.span(),
                    "driver \"process\" runs a program, not an image",
                    "remove `image`, or say driver = \"docker\"",
                );
            }
            if let Some(volume) = raw.volumes.0.first() {
                findings.add(
                    volume.span(),
                    "driver \"process\" has no volumes: the program sees this machine's files",
                    "remove `volumes`, or say driver = \"docker\"",
                );
            }
            let no_command = raw.command.as_ref().map_or(kind == EngineKind::Custom, |words| {
                words.get_ref().0.first().is_none_or(|word| word.get_ref().trim().is_empty())
            });
            if no_command {
                let span = raw.command.as_ref().map_or_else(|| place.clone(), Spanned::span);
                findings.add(
                    span,
                    "driver \"process\" needs a command",
                    "add command = [\"program\", ...]; arguments may stand in `args`",
                );
            } else if kind == EngineKind::Custom && !hands_port_on(raw) {
                findings.add(
                    raw.command.as_ref().map_or(place, Spanned::span),
                    "nothing here tells the engine its port",
                    "a process is given a free port: hand it on, as in args = [\"--port\", \"{port}\"]",
                );
            }
        }
    }
}

fn hands_port_on(raw: &RawModel) -> bool {
    let command = raw.command.iter().flat_map(|words| &words.get_ref().0);
    command
        .chain(&raw.args.0)
        .chain(&raw.env.0)
        .any(|word| placeholder::words(word.get_ref()).any(|name| name == "port"))
}

fn check_placeholders(word: &Spanned<String>, has_context: bool, findings: &mut Findings<'_>) {
    for name in placeholder::words(word.get_ref()) {
        let written = format!("{{{name}}}");
        if !PLACEHOLDERS.contains(&name) {
            let help = suggest(&name.to_lowercase(), &PLACEHOLDERS);
            findings.add_within(word.span(), &written, format!("unknown placeholder `{written}`"), help);
        } else if name == "context" && !has_context {
            let message = "`{context}` has nothing to stand for".to_owned();
            findings.add_within(word.span(), &written, message, "add `context = N` to this model".into());
        }
    }
}

fn check_env(entry: &Spanned<String>, findings: &mut Findings<'_>) {
    let name = entry.get_ref().split('=').next().unwrap_or_default();
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !starts || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        findings.add_hidden(
            entry.span(),
            "this is no environment variable",
            "write \"NAME=value\", or \"NAME\" to hand on the agent's own",
        );
    }
}

/// Checks `source:target[:mode]` and makes a relative source absolute.
fn resolve_volume(volume: &Spanned<String>, base: &Path, findings: &mut Findings<'_>) -> String {
    let text = volume.get_ref();
    let refuse = |findings: &mut Findings<'_>, message: String| {
        findings.add(
            volume.span(),
            message,
            "write \"/path/here:/path/in/container\" or \"name:/path/in/container\", with \":ro\" for reading only",
        );
        text.clone()
    };
    let Some((source, rest)) = text.split_once(':').filter(|(source, _)| !source.is_empty()) else {
        return refuse(findings, "a volume has a source and a target".into());
    };
    if !rest.starts_with('/') {
        return refuse(findings, format!("the target of this volume is no absolute path (`{rest}`)"));
    }
    let span = volume.span();
    if !is_path(source) {
        return text.clone();
    }
    let source = env::expand_home(source);
    // `~` stands for the home of whoever reads the file; a path below the file for the file's own folder.
    match std::path::absolute(base.join(source)) {
        Ok(source) => format!("{}:{rest}", clean(&source)),
        Err(error) => {
            findings.add(span, error.to_string(), "write the source as an absolute path");
            text.clone()
        }
    }
}

/// Anything else is the name of a Docker volume.
fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.', '~']) || source.contains('/')
}

/// The path without `.` in it; `..` stays, since a link may stand before it.
pub(crate) fn clean(path: &Path) -> String {
    path.components().collect::<std::path::PathBuf>().display().to_string()
}

/// Finds ids and aliases that are used twice.
pub(crate) fn check_unique(models: &[RawModel], findings: &mut Findings<'_>) {
    let mut seen: std::collections::HashMap<&str, (&str, Range<usize>)> = std::collections::HashMap::new();
    for model in models {
        for (name, owner) in model.names() {
            let owner = owner.get_ref().as_str();
            let text = name.get_ref().as_str();
            let Some((other, first)) = seen.get(text) else {
                seen.insert(text, (owner, name.span()));
                continue;
            };
            let line = findings.line(first);
            let message = if *other == text {
                format!("`{text}` is already the name of a model, in line {line}")
            } else if *other == owner {
                format!("`{text}` is already an alias of this model, in line {line}")
            } else {
                format!("`{text}` of model `{owner}` is already an alias of model `{other}`, in line {line}")
            };
            findings.add(name.span(), message, "ids and aliases must all differ: rename or remove one");
        }
    }
}

/// Finds strings in a list that are empty.
pub(crate) fn check_labels(labels: &Words, findings: &mut Findings<'_>) {
    for label in &labels.0 {
        if label.get_ref().trim().is_empty() || label.get_ref().contains(char::is_whitespace) {
            findings.add(label.span(), "this is no label", "write a word without spaces, as in \"gpu=a100\"");
        }
    }
}
