//! Who is measured: the engine itself, Berth before it, and whichever other gateways there are, all before the same
//! running engines.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_tests::{Berth, Engine, until};

use crate::load::Aim;
use crate::process;

/// Python gateways take a while.
const START: Duration = Duration::from_secs(240);

/// One way to the engines.
pub struct Contender {
    pub name: String,
    /// Where each model is asked for.
    aims: BTreeMap<String, Aim>,
    pids: Vec<u32>,
    /// What they are called, where that is told apart.
    names: Vec<&'static str>,
    /// Ended with it.
    _children: Vec<Running>,
}

/// A process that is ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Contender {
    pub fn aim(&self, model: &str) -> &Aim {
        &self.aims[model]
    }

    /// Processor time of all its processes so far.
    pub fn cpu(&self) -> Duration {
        process::tree(&self.pids).into_iter().map(process::cpu).sum()
    }

    /// The same of each by name, and what it holds in MiB.
    pub fn each(&self) -> Vec<(&'static str, Duration, f64)> {
        let named = self.names.iter().zip(&self.pids);
        named.map(|(name, pid)| (*name, process::cpu(*pid), process::memory(*pid, "VmRSS:"))).collect()
    }

    /// What its processes hold now, in MiB.
    pub fn memory(&self) -> f64 {
        process::tree(&self.pids).into_iter().map(|pid| process::memory(pid, "VmRSS:")).sum()
    }

    /// The same at its worst, each process by itself.
    pub fn peak(&self) -> f64 {
        process::tree(&self.pids).into_iter().map(|pid| process::memory(pid, "VmHWM:")).sum()
    }

    /// What its processes hold now, memory that they share counted once.
    pub fn proportional(&self) -> f64 {
        process::tree(&self.pids).into_iter().map(process::proportional).sum()
    }
}

/// The engines of Berth, which all use.
pub fn engines(berth: &Berth) -> BTreeMap<String, (String, u32)> {
    let running = berth.engines.running().into_iter();
    let found = running.filter_map(|engine| match &engine {
        Engine::Process { pid, model } => {
            Some((model.clone(), (engine.url().replace("http://", ""), u32::try_from(*pid).ok()?)))
        }
        Engine::Container { .. } => None,
    });
    found.collect()
}

/// Straight to the engines.
pub fn direct(engines: &BTreeMap<String, (String, u32)>) -> Contender {
    let aims = engines.iter().map(|(model, (authority, _))| {
        (model.clone(), Aim { authority: authority.clone(), model: model.clone() })
    });
    Contender {
        name: "direct".into(),
        aims: aims.collect(),
        pids: Vec::new(),
        names: Vec::new(),
        _children: Vec::new(),
    }
}

pub fn berth(berth: &mut Berth, models: &[&str]) -> Contender {
    let authority = berth.gateway.url().replace("http://", "");
    let mut names = vec!["gateway", "scheduler", "agent", "health"];
    let mut pids: Vec<u32> = names.iter().map(|role| berth.role(role).pid()).collect();
    pids.extend(berth.nats().pid());
    names.push("nats-server");
    // Engines are children of the agent, and nobody's part.
    let aims = models
        .iter()
        .map(|model| ((*model).to_owned(), Aim { authority: authority.clone(), model: (*model).to_owned() }));
    Contender { name: "berth".into(), aims: aims.collect(), pids, names, _children: Vec::new() }
}

/// Those that `tests/parts/peers.sh` has got.
pub async fn peers(direct: &Contender, folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<Contender> {
    let mut all = Vec::new();
    if let Some(python) = part("BERTH_BENCH_SGLANG_ROUTER").filter(|_| wanted("sglang-router")) {
        all.push(sglang_router(&python, direct, folder).await);
    }
    if let Some(python) = part("BERTH_BENCH_LITELLM").filter(|_| wanted("litellm")) {
        all.push(litellm(&python, direct, folder).await);
    }
    if let Some(binary) = part("BERTH_BENCH_LLAMA_SWAP").filter(|_| wanted("llama-swap")) {
        all.push(llama_swap(&binary, direct, folder).await);
    }
    all
}

fn part(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// One router for each engine: without its own discovery it takes all of its engines for the same.
async fn sglang_router(python: &Path, direct: &Contender, folder: &Path) -> Contender {
    let (mut aims, mut pids, mut children) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (model, engine) in &direct.aims {
        let authority = format!("127.0.0.1:{}", free_port());
        let (port, metrics) = (authority.rsplit(':').next().unwrap_or_default(), free_port().to_string());
        let mut command = Command::new(python);
        command.args(["-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", port]);
        command.args(["--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics]);
        command.args(["--policy", "round_robin", "--log-level", "warn"]);
        command.arg("--worker-urls").arg(format!("http://{}", engine.authority));
        let child = start(command, &folder.join(format!("sglang-router-{model}.log")));
        pids.push(child.0.id());
        children.push(child);
        aims.insert(model.clone(), Aim { authority, model: model.clone() });
    }
    finished("sglang-router", aims, pids, children).await
}

async fn litellm(python: &Path, direct: &Contender, folder: &Path) -> Contender {
    let authority = format!("127.0.0.1:{}", free_port());
    let port = authority.rsplit(':').next().unwrap_or_default();
    let mut config = "model_list:\n".to_owned();
    for (model, engine) in &direct.aims {
        config.push_str(&format!(
            "- model_name: {model}\n  litellm_params:\n    model: openai/{model}\n    api_base: http://{}/v1\n    api_key: none\n",
            engine.authority
        ));
    }
    let file = folder.join("litellm.yaml");
    std::fs::write(&file, config).expect("the configuration can be written");
    let mut command = Command::new(python.with_file_name("litellm"));
    command.arg("--config").arg(&file).args(["--host", "127.0.0.1", "--port", port, "--telemetry", "False"]);
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("LITELLM_LOG", "ERROR");
    // Nobody needs a key of the others either.
    command.env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true");
    shared(direct, "litellm", authority.clone(), start(command, &folder.join("litellm.log"))).await
}

/// Its engine is there already, so what it starts in its place does nothing.
async fn llama_swap(binary: &Path, direct: &Contender, folder: &Path) -> Contender {
    let authority = format!("127.0.0.1:{}", free_port());
    let mut config = "logLevel: error\nmodels:\n".to_owned();
    for (model, engine) in &direct.aims {
        config.push_str(&format!(
            "  {model}:\n    cmd: sleep infinity\n    proxy: http://{}\n    checkEndpoint: /health\n",
            engine.authority
        ));
    }
    let models = direct.aims.keys().cloned().collect::<Vec<_>>().join(", ");
    config.push_str(&format!("groups:\n  all:\n    swap: false\n    members: [{models}]\n"));
    let file = folder.join("llama-swap.yaml");
    std::fs::write(&file, config).expect("the configuration can be written");
    let mut command = Command::new(binary);
    command.arg("--config").arg(&file).arg("--listen").arg(&authority);
    shared(direct, "llama-swap", authority.clone(), start(command, &folder.join("llama-swap.log"))).await
}

/// One that serves every model at one address.
async fn shared(direct: &Contender, name: &str, authority: String, child: Running) -> Contender {
    let aims = direct
        .aims
        .keys()
        .map(|model| (model.clone(), Aim { authority: authority.clone(), model: model.clone() }));
    let pids = vec![child.0.id()];
    finished(name, aims.collect(), pids, vec![child]).await
}

async fn finished(
    name: &str,
    aims: BTreeMap<String, Aim>,
    pids: Vec<u32>,
    children: Vec<Running>,
) -> Contender {
    let client = reqwest::Client::new();
    for (model, aim) in &aims {
        until(&format!("{name} answers for {model}"), START, async || {
            let body = berth_tests::chat(model, &serde_json::json!({"max_tokens": 1})).to_string();
            let url = format!("http://{}/v1/chat/completions", aim.authority);
            let asked = client.post(url).header("content-type", "application/json").body(body).send().await;
            asked.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }
    Contender { name: name.into(), aims, pids, names: Vec::new(), _children: children }
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("an address").port()
}

fn start(mut command: Command, log: &Path) -> Running {
    let log = File::create(log).expect("a log can be written");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log can be shared")).stderr(log);
    Running(command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}")))
}
