//! Servers that Berth does not run: a real Ollama, and a real llama-server, started by hand.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::parts::{Part, path};
use crate::role::Role;
use crate::run::SOON;
use crate::until_ok;

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

async fn answers(url: &str, key: Option<&str>) -> Result<Value, String> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
    let mut request = client.map_err(|e| e.to_string())?.get(url);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.and_then(reqwest::Response::error_for_status);
    answer.map_err(|e| e.to_string())?.json().await.map_err(|e| e.to_string())
}

/// An Ollama with a home of its own.
#[derive(Debug)]
pub struct Ollama {
    home: TempDir,
    port: u16,
    server: Option<Role>,
}

impl Ollama {
    /// Starts one that has no models.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start() -> Self {
        let home = tempfile::Builder::new().prefix("berth-ollama-").tempdir().expect("a folder can be made");
        let mut ollama = Self { home, port: free_port(), server: None };
        ollama.serve().await;
        ollama
    }

    fn command(&self) -> Command {
        let mut command = Command::new(path(Part::Ollama));
        command
            .env("HOME", self.home.path())
            .env("OLLAMA_HOST", format!("127.0.0.1:{}", self.port))
            .env("OLLAMA_MODELS", self.home.path().join("models"))
            .env("OLLAMA_NO_CLOUD", "1")
            .env("OLLAMA_LOAD_TIMEOUT", "2m");
        command
    }

    /// Starts it again, on the same port.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn serve(&mut self) {
        let mut command = self.command();
        command.arg("serve").process_group(0);
        self.server = Some(Role::start("ollama", command));
        let url = format!("{}/api/version", self.url());
        until_ok("Ollama answers", SOON, async || answers(&url, None).await).await;
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("it runs");
        let group = Pid::from_raw(i32::try_from(server.pid()).expect("a process id"));
        server.kill9();
        // Its runners would stay.
        let _ = killpg(group, Signal::SIGKILL);
    }

    /// Makes a model of the tiny weights, as a user would.
    ///
    /// # Panics
    /// When Ollama does not take it.
    pub fn create(&self, model: &str) {
        let file: PathBuf = self.home.path().join("Modelfile");
        let mut weights = std::fs::read(path(Part::Gguf)).expect("the tiny model can be read");
        // Names of the same weights would share one place in memory.
        let last = weights.len() - 4;
        weights[last] = model.bytes().fold(0, |sum, byte| sum ^ byte);
        let copy = self.home.path().join(format!("{model}.gguf"));
        std::fs::write(&copy, weights).expect("the weights can be written");
        std::fs::write(&file, modelfile(&copy)).expect("the Modelfile can be written");
        self.run(&["create", model, "-f", &file.to_string_lossy()]);
    }

    /// Runs its command line.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, args: &[&str]) {
        let output = self.command().args(args).output().expect("ollama runs");
        assert!(output.status.success(), "ollama {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it has in memory, by name, with when that ends.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn loaded(&self) -> Vec<(String, String)> {
        let url = format!("{}/api/ps", self.url());
        let ps = until_ok("Ollama says what it holds", SOON, async || answers(&url, None).await).await;
        let models = ps["models"].as_array().cloned().unwrap_or_default();
        let text = |model: &Value, key: &str| model[key].as_str().unwrap_or_default().to_owned();
        models.iter().map(|model| (text(model, "name"), text(model, "expires_at"))).collect()
    }

    /// Asks it past Berth, as another of its users would.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn ask(&self, model: &str) {
        let body = json!({"model": model, "prompt": "hi", "stream": false, "options": {"num_predict": 1}});
        let client = reqwest::Client::builder().no_proxy().build().expect("a client can be made");
        let answer = client.post(format!("{}/api/generate", self.url())).json(&body).send().await;
        let status = answer.expect("Ollama answers").status();
        assert!(status.is_success(), "{status}");
    }
}

fn modelfile(weights: &Path) -> String {
    format!("FROM {}\nTEMPLATE {{{{ .Prompt }}}}\nPARAMETER num_ctx 2048\n", weights.display())
}

/// A llama-server with an API key.
#[derive(Debug)]
pub struct LlamaByHand {
    port: u16,
    key: String,
    server: Option<Role>,
}

impl LlamaByHand {
    /// Starts one that serves the tiny model as `model`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start(model: &str, key: &str) -> Self {
        let mut server = Self { port: free_port(), key: key.into(), server: None };
        server.serve(model).await;
        server
    }

    /// Starts it again, on the same port.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn serve(&mut self, model: &str) {
        let port = self.port.to_string();
        let weights = path(Part::Gguf);
        let mut command = Command::new(path(Part::LlamaServer));
        command.args(["--host", "127.0.0.1", "--port", &port, "--alias", model, "--api-key", &self.key]);
        command.args([
            "--chat-template",
            "chatml",
            "--embeddings",
            "--pooling",
            "mean",
            "-c",
            "8192",
            "-np",
            "2",
        ]);
        command.args(["--threads", "1", "-m", &weights.to_string_lossy()]);
        self.server = Some(Role::start("llama-server", command));
        let (url, key) = (format!("{}/v1/models", self.url()), self.key.clone());
        until_ok("llama-server answers", SOON, async || answers(&url, Some(&key)).await).await;
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.server.take().expect("it runs").kill9();
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
