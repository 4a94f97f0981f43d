//! Configuration files for the tests, written as text: what a user would write.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::parts::{Part, path};

/// A `[[models]]` entry.
#[derive(Debug, Clone)]
pub struct Model {
    id: String,
    fields: Vec<(String, String)>,
    env: Vec<String>,
    /// Given a copy of the tiny model of its own, by which its containers are found.
    wants_weights: bool,
}

impl Model {
    /// An entry with these fields, each TOML as it would stand in the file.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), fields: Vec::new(), env: Vec::new(), wants_weights: false }
    }

    /// The engine simulator as a process, with these arguments after its template's.
    #[must_use]
    pub fn sim(id: &str, args: &[&str]) -> Self {
        Self::new(id).field("engine", "\"sim\"").field("driver", "\"process\"").list("args", args)
    }

    /// A real llama-server as a process, on the tiny model.
    #[must_use]
    pub fn llama_process(id: &str) -> Self {
        let server = path(Part::LlamaServer);
        let command = [&server.to_string_lossy(), "--host", "{host}", "--port", "{port}"];
        Self::new(id)
            .field("engine", "\"llama.cpp\"")
            .field("driver", "\"process\"")
            .list("command", &command)
            .list("args", &llama_args("WEIGHTS"))
            .weights()
    }

    /// A real llama-server in a container, on the tiny model.
    #[must_use]
    pub fn llama_docker(id: &str) -> Self {
        let mut args = vec!["--host", "{host}", "--port", "{port}"];
        args.extend(llama_args("/models/tiny.gguf"));
        Self::new(id)
            .field("engine", "\"llama.cpp\"")
            .field("driver", "\"docker\"")
            .field("image", &quoted(&Part::LlamaImage.text()))
            .list("args", &args)
            .list("volumes", &["WEIGHTS:/models/tiny.gguf:ro"])
            .weights()
    }

    /// A real vLLM on the CPU as a process, on its tiny model.
    #[must_use]
    pub fn vllm_process(id: &str) -> Self {
        let part = path(Part::Vllm);
        let (program, model) = (part.join("bin/vllm"), part.join("model"));
        Self::vllm(id, &[&program.to_string_lossy(), "serve"], &[&model.to_string_lossy()])
            .field("driver", "\"process\"")
            // Below what a fleet that is dropped is given: vLLM's workers do not heed SIGTERM.
            .field("stop_grace", "\"5s\"")
    }

    /// The same in a container. There is no image of it: it sees this machine's programs and libraries.
    #[must_use]
    pub fn vllm_docker(id: &str) -> Self {
        let part = path(Part::Vllm);
        let program = part.join("bin/python").canonicalize().expect("the part holds a Python");
        let base = program.ancestors().nth(2).expect("it lies in a folder");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let folders = ["/usr".into(), "/bin".into(), "/lib".into(), "/lib64".into(), text(&part), text(base)];
        let mounts: Vec<String> = folders
            .iter()
            .filter(|folder| !folder.starts_with("/usr/"))
            .map(|folder| format!("{folder}:{folder}:ro"))
            .collect();
        let command = [text(&part.join("bin/python")), text(&part.join("bin/vllm")), "serve".into()];
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        // By the first of them it is found.
        let mut volumes = vec!["WEIGHTS:/models/tiny.gguf:ro"];
        volumes.extend(mounts.iter().map(String::as_str));
        Self::vllm(id, &command, &[&text(&part.join("model"))])
            .weights()
            .field("driver", "\"docker\"")
            .field("image", &quoted(&Part::LlamaImage.text()))
            .list("volumes", &volumes)
            .env(&["HOME=/tmp", "USER=root"])
    }

    fn vllm(id: &str, command: &[&str], model: &[&str]) -> Self {
        let args = [model, &["--enforce-eager", "--max-model-len", "2048"]].concat();
        Self::new(id)
            .field("engine", "\"vllm\"")
            .list("command", command)
            .list("args", &args)
            .memory("2GiB")
            .env(&[
                "VLLM_CPU_KVCACHE_SPACE=1",
                "HF_HUB_OFFLINE=1",
                "VLLM_NO_USAGE_STATS=1",
                "OMP_NUM_THREADS=1",
            ])
    }

    /// Adds variables to its environment.
    #[must_use]
    pub fn env(mut self, entries: &[&str]) -> Self {
        self.env.extend(entries.iter().map(|entry| (*entry).to_owned()));
        self
    }

    /// Sets a field; `value` is TOML.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.retain(|(known, _)| known != name);
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Sets a field to a list of texts.
    #[must_use]
    pub fn list(self, name: &str, items: &[&str]) -> Self {
        let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
        self.field(name, &format!("[{}]", items.join(", ")))
    }

    /// Adds to its `args`; of two that say the same the server takes the later.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn also_args(mut self, items: &[&str]) -> Self {
        let known = self.fields.iter_mut().find(|(name, _)| name == "args").expect("it has arguments");
        let more = items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ");
        known.1 = format!("{}, {more}]", known.1.trim_end_matches(']'));
        self
    }

    /// Memory it needs, as in `"600MiB"`.
    #[must_use]
    pub fn memory(self, size: &str) -> Self {
        self.field("memory", &quoted(size))
    }

    /// Its slots.
    #[must_use]
    pub fn concurrency(self, slots: u32) -> Self {
        self.field("concurrency", &slots.to_string())
    }

    /// The text WEIGHTS in its fields is the path of its own copy of the tiny model.
    #[must_use]
    pub fn weights(mut self) -> Self {
        self.wants_weights = true;
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn write(&self, text: &mut String, run: &str, folder: &Path) {
        let mut env = self.env.clone();
        // Engines are found by these, whoever their parent is.
        env.push(format!("BERTH_TEST_RUN={run}"));
        env.push(format!("BERTH_TEST_MODEL={}", self.id));
        let entry = self.clone().list("env", &env.iter().map(String::as_str).collect::<Vec<_>>());
        writeln!(text, "\n[[models]]\nid = {}", quoted(&self.id)).expect("a String takes text");
        for (name, value) in &entry.fields {
            let value = match self.wants_weights {
                true => value.replace("WEIGHTS", &self.copy_weights(folder).to_string_lossy()),
                false => value.clone(),
            };
            writeln!(text, "{name} = {value}").expect("a String takes text");
        }
    }

    fn copy_weights(&self, folder: &Path) -> PathBuf {
        let copy = folder.join(format!("{}.gguf", berth_wire::slug::encode(&self.id)));
        if !copy.exists() {
            std::fs::copy(path(Part::Gguf), &copy).expect("the tiny model can be copied");
        }
        copy
    }
}

/// Chat, completions and embeddings all need these; with them one server does all three.
fn llama_args(weights: &str) -> Vec<&str> {
    vec![
        "-m",
        weights,
        "--chat-template",
        "chatml",
        "--embeddings",
        "--pooling",
        "mean",
        "-c",
        "65536",
        "-np",
        "{concurrency}",
        "--threads",
        "1",
    ]
}

/// A whole file.
#[derive(Debug, Clone, Default)]
pub struct Config {
    memory: Option<String>,
    /// More lines, by section: `("gateway", "grace = \"1s\"")`.
    lines: Vec<(String, String)>,
    models: Vec<Model>,
    more: String,
    /// Each role of a fleet has a key of its own, which opens what it needs.
    pub(crate) permissions: bool,
}

impl Config {
    /// Models on a host of 4 GiB.
    #[must_use]
    pub fn of(models: impl IntoIterator<Item = Model>) -> Self {
        Self { models: models.into_iter().collect(), ..Self::default() }
    }

    /// The host's memory, as in `"1GiB"`.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        self.memory = Some(size.into());
        self
    }

    /// A fleet of it runs on a nats-server with permissions, as `berth nats init` makes them. `BERTH_TEST_PERMISSIONS`
    /// does so for every fleet.
    #[must_use]
    pub fn permissions(mut self) -> Self {
        self.permissions = true;
        self
    }

    /// A line of a section, as in `("gateway", "body_limit = \"1MiB\"")`.
    #[must_use]
    pub fn line(mut self, section: &str, line: &str) -> Self {
        self.lines.push((section.into(), line.into()));
        self
    }

    /// More of the file, as it would stand in it.
    #[must_use]
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    /// The file's text for one run.
    #[must_use]
    pub(crate) fn text(&self, run: &str, folder: &Path, nats: Option<&str>) -> String {
        let memory = quoted(self.memory.as_deref().unwrap_or("4GiB"));
        let mut sections = vec![
            ("bus", nats.map_or(String::new(), |url| format!("urls = [{}]\n", quoted(url)))),
            ("gateway", "listen = \"127.0.0.1:0\"\n".into()),
            ("host", format!("name = {}\nmemory = {memory}\n", quoted(run))),
            ("scheduler", String::new()),
            ("health", String::new()),
            ("telemetry", String::new()),
        ];
        for (section, line) in &self.lines {
            let (_, text) = sections.iter_mut().find(|(name, _)| name == section).expect("a known section");
            text.push_str(line);
            text.push('\n');
        }
        let mut text = String::new();
        for (name, lines) in sections {
            if !lines.is_empty() {
                writeln!(text, "[{name}]\n{lines}").expect("a String takes text");
            }
        }
        for model in &self.models {
            model.write(&mut text, run, folder);
        }
        text.push_str(&self.more);
        text
    }
}

/// A TOML basic string; its escapes are those of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
