//! `berth add`: writes a server that somebody else runs into the configuration.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_config::{Config, ExternalKind, is_same_server, parse_server_url};
use clap::Args;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::exit::{Exit, Failure};
use crate::identify::identify;
use crate::setup;

/// Examples below the help.
pub(crate) const EXAMPLES: &str = "\
A server that runs already - Ollama, LM Studio, LocalAI, llama-server, vLLM, LiteLLM, or anything that speaks
OpenAI's HTTP - becomes a source of models: what it lists is in /v1/models of Berth, waits in the same queue and is
served through the same endpoint. Ollama's models are loaded and unloaded as Berth decides; other servers are left
as they are. The server stays where it is, and only the agent next to it needs its address and its key.

The entry is an [[external]] table; everything else in the file stays as it is. Running services read it when they
are started again.

Examples:
  berth add http://127.0.0.1:11434                                Ollama on its usual port
  berth add http://127.0.0.1:4000/v1 --key-env LITELLM_KEY        a server that wants a key
  berth add http://192.168.1.7:1234 --name desk --config my.toml  under a name of its own";

/// Time for each question to the server.
const PATIENCE: Duration = Duration::from_secs(3);

/// Options of `add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// The server's address, with or without /v1.
    #[arg(value_parser = url)]
    url: String,
    /// What it is called in logs and errors [default: its kind].
    #[arg(long)]
    name: Option<String>,
    /// Which server it is: ollama, lmstudio, localai, llama.cpp, vllm, litellm or openai [default: as it answers].
    #[arg(long, value_parser = kind)]
    kind: Option<ExternalKind>,
    /// The variable of the agent's environment that holds its key.
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Requests for each of its models at a time [default: by kind].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Configuration file; made if it is not there [default: $BERTH_CONFIG, else ./berth.toml].
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn url(text: &str) -> Result<String, String> {
    parse_server_url(text).map_err(|why| format!("{why}; write it as in http://127.0.0.1:11434"))
}

fn kind(text: &str) -> Result<ExternalKind, String> {
    let known = ExternalKind::ALL;
    known
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| format!("there are: {}", known.map(ExternalKind::as_str).join(", ")))
}

/// Adds the entry and shows what was added.
pub(crate) fn run(args: &AddArgs) -> Result<Exit, Failure> {
    let path = setup::config_file(args.config.as_deref()).unwrap_or_else(|| PathBuf::from("berth.toml"));
    let shown = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Failure::File { path, source }),
    };
    // What is wrong already is not for this to hide.
    let before = Config::parse(&text, &shown)?;
    if let Some(there) = before.external.iter().find(|server| is_same_server(&server.url, &args.url)) {
        return Err(Failure::Input(format!("{shown} has this server already, as `{}`", there.name)));
    }
    let kind = match args.kind {
        Some(kind) => kind,
        None => ask(&args.url)?,
    };
    let entry = Entry {
        url: &args.url,
        kind,
        name: name(args.name.as_deref(), kind, &before),
        key_env: args.key_env.as_deref(),
        concurrency: args.concurrency,
    };
    let after =
        entry.added_to(&text).map_err(|error| Failure::Input(format!("cannot edit {shown}: {error}")))?;
    Config::parse(&after, &shown)?;
    write(&path, &after).map_err(|source| Failure::File { path: path.clone(), source })?;
    let what = if text.is_empty() { "new file" } else { "added" };
    println!("{shown}: {what}\n{}", difference(&text, &after));
    println!("It is served by the next `berth up` (or `berth agent`) that is started with this file.");
    Ok(Exit::Done)
}

fn ask(url: &str) -> Result<ExternalKind, Failure> {
    let found = actix_rt::System::new().block_on(identify(url, PATIENCE));
    match found {
        Some(server) if server.is_berth => Err(Failure::Input(format!(
            "a gateway of Berth answers at {url}: this fleet's own would list its models to itself without end; if it is \
             that of another fleet, add it with --kind openai"
        ))),
        Some(server) => {
            println!("{url}: {server}");
            Ok(server.kind)
        }
        None => Err(Failure::Input(format!(
            "no model server answers at {url}: start it, or say what it is by --kind"
        ))),
    }
}

/// The name that was given; else none while the kind's own is free; else the kind's with a number.
fn name(given: Option<&str>, kind: ExternalKind, config: &Config) -> Option<String> {
    let taken = |name: &str| config.external.iter().any(|server| server.name == name);
    match given {
        Some(name) => Some(name.to_owned()),
        None if !taken(kind.as_str()) => None,
        None => (2..).map(|n| format!("{}-{n}", kind.as_str())).find(|name| !taken(name)),
    }
}

/// A new entry.
struct Entry<'a> {
    url: &'a str,
    kind: ExternalKind,
    name: Option<String>,
    key_env: Option<&'a str>,
    concurrency: Option<u32>,
}

impl Entry<'_> {
    /// The text with the entry in it, and every comment where it was.
    fn added_to(&self, text: &str) -> Result<String, String> {
        let mut document: DocumentMut =
            text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
        let mut table = Table::new();
        if let Some(name) = &self.name {
            table.insert("name", value(name.as_str()));
        }
        table.insert("url", value(self.url));
        table.insert("kind", value(self.kind.as_str()));
        if let Some(name) = self.key_env {
            table.insert("key_env", value(name));
        }
        if let Some(concurrency) = self.concurrency {
            table.insert("concurrency", value(i64::from(concurrency)));
        }
        if !text.trim().is_empty() {
            table.decor_mut().set_prefix("\n");
        }
        let servers = document.entry("external").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let servers =
            servers.as_array_of_tables_mut().ok_or("`external` is written as a list within brackets")?;
        servers.push(table);
        Ok(document.to_string())
    }
}

/// Replaces the file in one step, with the permissions that it had.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    // Through a link, the file itself.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = (|| {
        let mut file = std::fs::File::create(&part)?;
        if let Ok(meta) = path.metadata() {
            file.set_permissions(meta.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, &path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// The lines that were added, each behind a `+`: nothing else ever changes.
fn difference(before: &str, after: &str) -> String {
    let old: Vec<&str> = before.lines().collect();
    let new: Vec<&str> = after.lines().collect();
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let count = new.len().saturating_sub(old.len());
    let added = new.iter().skip(same).take(count).map(|line| match *line {
        "" => "+\n".to_owned(),
        line => format!("+ {line}\n"),
    });
    format!("@@ line {} @@\n{}", same + 1, added.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(url: &str) -> Entry<'_> {
        Entry { url, kind: ExternalKind::Ollama, name: None, key_env: None, concurrency: None }
    }

    const FILE: &str = "# mine\n[host]\nname = \"desk\" # this one\n\n[[models]]\nid = \"demo\"\nengine = \"sim\"\n\n# the end\n";

    #[test]
    fn an_entry_is_added_and_every_other_line_stays() {
        let after = entry("http://127.0.0.1:1").added_to(FILE).unwrap();
        for line in FILE.lines() {
            assert!(after.lines().any(|other| other == line), "`{line}` in:\n{after}");
        }
        let config = Config::parse(&after, "f").unwrap();
        assert_eq!(config.external[0].kind, ExternalKind::Ollama);
        let again = entry("http://127.0.0.1:2");
        let again =
            Entry { name: name(None, ExternalKind::Ollama, &config), ..again }.added_to(&after).unwrap();
        let config = Config::parse(&again, "f").unwrap();
        assert_eq!(config.external[1].name, "ollama-2");
    }

    #[test]
    fn a_new_file_begins_with_the_entry_and_the_difference_is_what_was_added() {
        let after = entry("http://127.0.0.1:1").added_to("").unwrap();
        assert!(after.starts_with("[[external]]\n"), "{after}");
        assert_eq!(
            difference("", &after),
            "@@ line 1 @@\n+ [[external]]\n+ url = \"http://127.0.0.1:1\"\n+ kind = \"ollama\"\n"
        );
        let more = entry("http://127.0.0.1:2").added_to(FILE).unwrap();
        assert!(difference(FILE, &more).contains("+ [[external]]\n+ url"), "{more}");
    }

    #[test]
    fn a_list_within_brackets_is_told_of() {
        assert!(entry("http://h").added_to("external = []\n").unwrap_err().contains("brackets"));
    }
}
