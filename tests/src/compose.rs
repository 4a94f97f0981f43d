//! Fleets by `docker compose`, from the files at the root of the repository and in `compose/`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::gateway::Gateway;
use crate::parts::{Part, path};
use crate::role::{Finished, finish};
use crate::run::{SOON, unique};

/// Building the image and starting everything, on a busy machine.
const LONG: Duration = Duration::from_secs(300);

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in a folder of it").to_path_buf()
}

/// A port of 127.0.0.1 that nobody uses now.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    listener.local_addr().expect("it is bound").port()
}

/// `docker`, and what it prints.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn docker(args: &[&str]) -> String {
    let mut command = Command::new("docker");
    command.args(args);
    let done = finish(command, SOON);
    assert!(done.ok, "docker {args:?}: {}", done.output);
    done.output.trim().to_owned()
}

/// One Compose project. `docker compose down` when dropped, with its volumes.
#[derive(Debug)]
pub struct Compose {
    project: String,
    files: Vec<String>,
    env: Vec<(String, String)>,
    folder: TempDir,
    builds: bool,
}

impl Compose {
    /// A project of these files, below the root of the repository, with a folder for `berth.toml` and weights.
    ///
    /// # Panics
    /// When no folder can be made, or a part is missing.
    #[must_use]
    pub fn new(files: &[&str]) -> Self {
        let project = format!("berth-test-{}", unique());
        let folder = tempfile::Builder::new().prefix("berth-test-").tempdir().expect("a folder can be made");
        // Containers run as somebody else.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("the folder is ours");
        let images = Part::BaseImages.text();
        let socket = std::fs::metadata("/var/run/docker.sock").expect("Docker's socket is there");
        let publish = format!("127.0.0.1:{}", free_port());
        let compose =
            Self { project: project.clone(), files: Vec::new(), env: Vec::new(), folder, builds: true };
        compose
            .files(files)
            .env("BERTH_IMAGE", &format!("{project}:test"))
            .env("BERTH_NATS_IMAGE", &format!("berth-test/nats:{images}"))
            .env("BERTH_BASE_IMAGE", &format!("berth-test/debian:{images}"))
            .env("BERTH_DOCKERFILE", &repository().join("Dockerfile").to_string_lossy())
            .env("BERTH_BUILD_BINARY", "prebuilt")
            .env("BERTH_DOCKER_GID", &std::os::unix::fs::MetadataExt::gid(&socket).to_string())
            .env("BERTH_HOST", &project)
            .env("BERTH_PUBLISH", &publish)
    }

    /// Uses the image of another project.
    #[must_use]
    pub fn image_of(mut self, other: &Self) -> Self {
        self.builds = false;
        let image = other.value("BERTH_IMAGE").to_owned();
        self.env("BERTH_IMAGE", &image)
    }

    fn files(mut self, files: &[&str]) -> Self {
        self.files = files.iter().map(|file| (*file).to_owned()).collect();
        self
    }

    /// Sets a variable of the files.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.into(), value.into()));
        self
    }

    /// What a variable is.
    ///
    /// # Panics
    /// When it is not set.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("{name} is not set")).1
    }

    /// Its name.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// A folder for its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The repository's berth.toml with more at its end, instead of the file itself.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn config(self, more: &str) -> Self {
        let text = std::fs::read_to_string(repository().join("berth.toml")).expect("it is there");
        let file = self.folder().join("berth.toml");
        std::fs::write(&file, text + more).expect("it can be written");
        let file = file.to_string_lossy().into_owned();
        self.env("BERTH_CONFIG_FILE", &file)
    }

    /// Runs `docker compose`.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Finished {
        let mut command = Command::new(path(Part::Compose));
        for file in &self.files {
            command.arg("-f").arg(repository().join(file));
        }
        command.args(["-p", &self.project]).args(args).current_dir(repository());
        let ours = std::env::vars().filter(|(name, _)| name.starts_with("BERTH_"));
        for (name, _) in ours {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        finish(command, LONG)
    }

    /// Runs `docker compose`, and gives what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert!(done.ok, "docker compose {args:?}: {}", done.output);
        done.output
    }

    /// Builds the image from the binary under test, and starts everything.
    ///
    /// # Panics
    /// When it fails.
    pub fn up(&mut self) {
        if self.builds {
            let context = self.folder().join("image");
            std::fs::create_dir(&context).expect("a folder can be made");
            // Without what debuggers read it is a quarter of its size.
            let mut strip = Command::new("strip");
            strip.arg("--strip-debug").arg("-o").arg(context.join("berth")).arg(path(Part::Berth));
            assert!(finish(strip, SOON).ok, "the binary can be stripped");
            std::fs::copy("/etc/ssl/certs/ca-certificates.crt", context.join("ca-certificates.crt"))
                .expect("certificates are there");
            self.env.push(("BERTH_BUILD_CONTEXT".into(), context.to_string_lossy().into_owned()));
            let _ = self.ok(&["build", "-q"]);
        }
        let _ = self.ok(&["up", "-d", "--no-build", "--quiet-pull"]);
    }

    /// A gateway, by the variable that publishes it.
    #[must_use]
    pub fn gateway(&self, variable: &str) -> Gateway {
        Gateway::new(&format!("http://{}", self.value(variable)))
    }

    /// The containers of a service.
    #[must_use]
    pub fn containers(&self, service: &str) -> Vec<String> {
        let mut lines: Vec<String> =
            self.ok(&["ps", "-q", service]).split_whitespace().map(str::to_owned).collect();
        lines.retain(|line| line.len() == 64);
        lines
    }

    /// Kills the first process of a container, as a crash or the kernel would: `docker kill` counts as a person's word, after
    /// which Docker restarts nothing.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&self, container: &str) {
        let pid = docker(&["inspect", "-f", "{{.State.Pid}}", container]);
        let kill = format!("kill -9 {pid}");
        let _ = docker(&["run", "--rm", "--pid=host", self.value("BERTH_BASE_IMAGE"), "sh", "-c", &kill]);
    }

    /// Everything of it is gone.
    ///
    /// # Panics
    /// When it is not.
    pub fn down(&self) {
        let _ = self.ok(&["down", "-v"]);
        let ours = format!("label=com.docker.compose.project={}", self.project);
        for list in [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]] {
            let left = docker(&[list, &["--filter", &ours]].concat());
            assert_eq!(left, "", "{list:?} shows what is left");
        }
        assert_eq!(self.engines(), Vec::<String>::new(), "no engine is left");
    }

    /// Containers of its host's engines.
    #[must_use]
    pub fn engines(&self) -> Vec<String> {
        let ours = format!("label=berth.host={}", self.value("BERTH_HOST"));
        docker(&["ps", "-aq", "--filter", &ours]).split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.run(&["ps", "-a"]).output);
            eprintln!("{}", self.run(&["logs", "--no-color", "--tail", "40"]).output);
        }
        let _ = self.run(&["down", "-v", "-t", "1"]);
        for engine in self.engines() {
            let _ = Command::new("docker").args(["rm", "-f", &engine]).output();
        }
        let _ = self.run(&["down", "-v", "-t", "1"]);
        if self.builds {
            let _ = Command::new("docker").args(["image", "rm", "-f", self.value("BERTH_IMAGE")]).output();
        }
    }
}
