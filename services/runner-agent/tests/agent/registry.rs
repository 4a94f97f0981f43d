//! A real registry on loopback that asks for a password, behind a proxy that can be slow.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use berth_config::RegistryConfig;
use berth_testkit::proxy::FaultProxy;
use berth_testkit::wait::until;

use crate::containers::{docker, part};
use crate::fixture::WAIT;

pub(crate) const USER: &str = "me";
/// Such that plain and URL-safe base64 of it differ.
pub(crate) const PASSWORD: &str = "tides~>?of~>?air";
const HTPASSWD: &str = "me:$2b$04$qYLFfvmwvmVWSP7gEiJQ..nADxNywKNNdjsUU9hSHjiNgJo9au7kS\n";

pub(crate) struct Registry {
    pub(crate) proxy: FaultProxy,
    server: Child,
    folder: tempfile::TempDir,
    images: Vec<String>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        for image in &self.images {
            docker(&["rmi", "-f", image]);
        }
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (data, htpasswd) = (folder.path().join("data"), folder.path().join("htpasswd"));
        std::fs::write(&htpasswd, HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\", secret: test}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            data.display(),
            htpasswd.display()
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let server = Command::new(part("BERTH_TEST_REGISTRY"))
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until("the registry listens", WAIT, async || TcpStream::connect(address).is_ok()).await;
        let proxy = FaultProxy::start(address).await.unwrap();
        Self { proxy, server, folder, images: Vec::new() }
    }

    pub(crate) fn address(&self) -> String {
        self.proxy.address().to_string()
    }

    /// What lets in.
    pub(crate) fn entry(&self, password: &str) -> RegistryConfig {
        let file = self.folder.path().join(format!("password-{}", password.len()));
        std::fs::write(&file, password).unwrap();
        RegistryConfig {
            address: self.address(),
            user: USER.into(),
            password_env: None,
            password_file: Some(file),
        }
    }

    /// Has an image there, and not on this host: `base` and two layers of noise. Returns its name and its digest.
    pub(crate) async fn image(&mut self, base: &str, name: &str, sizes: [usize; 2]) -> (String, String) {
        let image = format!("{}/berth-test/{name}:1", self.address());
        let context = self.folder.path().join(name);
        std::fs::create_dir(&context).unwrap();
        for (file, size) in ["a", "b"].into_iter().zip(sizes) {
            noise(&context.join(file), size);
        }
        std::fs::write(context.join("Dockerfile"), format!("FROM {base}\nCOPY a /a\nCOPY b /b\n")).unwrap();
        let (login, own) = (self.folder.path().join("login"), image.clone());
        let address = self.address();
        // Not on this thread, which the proxy needs.
        let digest = tokio::task::spawn_blocking(move || {
            let login = login.display().to_string();
            let context = context.display().to_string();
            let mut build = Command::new("docker");
            run(build.env("DOCKER_BUILDKIT", "0").args(["build", "-q", "-t", &own, &context]), "");
            let docker_as = |args: &[&str], input: &str| {
                run(Command::new("docker").args(["--config", &login]).args(args), input);
            };
            docker_as(&["login", "-u", USER, "--password-stdin", &address], PASSWORD);
            docker_as(&["push", "-q", &own], "");
            let digests = docker(&["inspect", "-f", "{{index .RepoDigests 0}}", &own]);
            docker(&["rmi", "-f", &own]);
            digests.split_once('@').unwrap().1.to_owned()
        });
        let digest = digest.await.unwrap();
        let repository = image.strip_suffix(":1").unwrap();
        self.images.push(format!("{repository}@{digest}"));
        self.images.push(image.clone());
        (image, digest)
    }
}

fn run(command: &mut Command, input: &str) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What no compression makes smaller.
fn noise(path: &Path, size: usize) {
    let mut bytes = vec![0; size];
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
    std::fs::write(path, bytes).unwrap();
}
