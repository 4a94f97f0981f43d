//! The real parts, as `tests/run` tells where they are.

use std::path::PathBuf;

/// One part.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// The `berth` binary.
    Berth,
    /// nats-server.
    NatsServer,
    /// The NATS CLI.
    NatsCli,
    /// llama.cpp's server.
    LlamaServer,
    /// Ollama.
    Ollama,
    /// llama.cpp's server as a Docker image.
    LlamaImage,
    /// The tag of the Debian and NATS images that the fleet's image and Compose build on.
    BaseImages,
    /// Docker Compose.
    Compose,
    /// A folder with Prometheus and promtool.
    Prometheus,
    /// The tiny model.
    Gguf,
    /// A folder with a vLLM that runs on the CPU (`bin/vllm`), a `model` for it and an `adapter` of that.
    Vllm,
    /// A Python that has the openai and anthropic clients.
    Python,
    /// A folder with Node, and those clients for it.
    Node,
}

impl Part {
    fn variable(self) -> &'static str {
        match self {
            Self::Berth => "BERTH_TEST_BIN",
            Self::NatsServer => "BERTH_TEST_NATS_SERVER",
            Self::NatsCli => "BERTH_TEST_NATS_CLI",
            Self::LlamaServer => "BERTH_TEST_LLAMA_SERVER",
            Self::Ollama => "BERTH_TEST_OLLAMA",
            Self::LlamaImage => "BERTH_TEST_LLAMA_IMAGE",
            Self::BaseImages => "BERTH_TEST_BASE_IMAGES",
            Self::Compose => "BERTH_TEST_COMPOSE",
            Self::Prometheus => "BERTH_TEST_PROMETHEUS",
            Self::Gguf => "BERTH_TEST_GGUF",
            Self::Vllm => "BERTH_TEST_VLLM",
            Self::Python => "BERTH_TEST_PYTHON",
            Self::Node => "BERTH_TEST_NODE",
        }
    }

    /// What the variable holds.
    ///
    /// # Panics
    /// When the part is missing.
    #[must_use]
    pub fn text(self) -> String {
        let name = self.variable();
        std::env::var(name).unwrap_or_else(|_| {
            panic!("{name} is not set: run `bash tests/run`, which gets the parts of the tests")
        })
    }
}

/// Where a part is.
///
/// # Panics
/// When it is missing.
#[must_use]
pub fn path(part: Part) -> PathBuf {
    let path = PathBuf::from(part.text());
    assert!(path.exists(), "{} does not exist: run `bash tests/run`, which gets it", path.display());
    path
}

/// A command that runs `berth`, with nats-server found on `PATH` and nothing of the caller's own configuration.
///
/// # Panics
/// When the binary is missing.
#[must_use]
pub fn berth() -> std::process::Command {
    let mut command = std::process::Command::new(path(Part::Berth));
    let mut folders = vec![path(Part::NatsServer).parent().expect("a file has a folder").to_path_buf()];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    command.env("PATH", std::env::join_paths(folders).expect("PATH was valid"));
    for name in ["BERTH_CONFIG", "BERTH_DATA_DIR", "BERTH_NATS_URL", "BERTH_LISTEN", "BERTH_HOST"] {
        command.env_remove(name);
    }
    command
}
