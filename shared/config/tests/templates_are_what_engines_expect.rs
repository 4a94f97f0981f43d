//! What a model of each kind is run with.

#![expect(clippy::panic, reason = "a test fails by it")]

use std::time::Duration;

use berth_config::{Config, LlamaServer, ModelFileError};
use berth_wire::{Class, Driver, ModelSpec, Scope};

fn model(rest: &str) -> ModelSpec {
    let text = format!("[[models]]\nid = \"m\"\n{rest}");
    Config::parse(&text, "/etc/berth/berth.toml").unwrap_or_else(|e| panic!("{e}")).models.remove(0)
}

#[test]
fn the_example_reads_and_its_comments_are_true_defaults() {
    let example = Config::parse(berth_config::EXAMPLE, "berth.toml").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(Config::builtin(), example);
    let ids: Vec<&str> = example.models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(ids, ["demo", "qwen2.5-0.5b"]);
    let empty = Config::empty();
    assert_eq!((&example.bus, &example.gateway), (&empty.bus, &empty.gateway));
    assert_eq!((&example.host, &example.scheduler), (&empty.host, &empty.scheduler));
}

#[test]
fn every_option_in_the_examples_comments_is_an_option() {
    let text: String = berth_config::EXAMPLE
        .lines()
        .take_while(|line| !line.starts_with("# More"))
        .map(|line| {
            line.strip_prefix("# ").filter(|rest| is_option(rest) || rest.starts_with("[[")).unwrap_or(line)
        })
        // These name files that are not here, or contradict what is given.
        .filter(|line| {
            !["token_file", "nkey_file", "password_file", "secret_file", "ca =", "command", "key_env"]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .map(|line| format!("{line}\n").replace("blake3:...", &berth_wire::KeyHash::of("k").to_text()))
        .collect();
    let config = Config::parse(&text, "berth.toml").unwrap_or_else(|e| panic!("{e}"));
    let defaults = Config::empty();
    assert_eq!(config.gateway.workers, Some(4));
    let [key] = config.gateway.keys.as_slice() else { panic!("one key: {:?}", config.gateway.keys) };
    assert_eq!((key.name.as_str(), key.scope, key.class), ("laptop", Scope::User, Class::Standard));
    let [server] = config.external.as_slice() else { panic!("one server: {:?}", config.external) };
    assert_eq!((server.name.as_str(), server.prefix.as_str()), ("desk", "desk/"));
    let [registry] = config.host.registries.as_slice() else { panic!("one: {:?}", config.host.registries) };
    assert_eq!(registry.address, "registry.example:5000");
    assert_eq!(config.gateway.open, defaults.gateway.open);
    assert_eq!(config.gateway.grace, defaults.gateway.grace);
    assert_eq!(config.gateway.body_limit, defaults.gateway.body_limit);
    assert_eq!(config.gateway.window, defaults.gateway.window);
    assert_eq!(config.gateway.stream_wait_limit, defaults.gateway.stream_wait_limit);
    assert!(config.scheduler.record.as_ref().is_some_and(|file| file.ends_with("scheduler.jsonl")));
    let scheduler = berth_config::SchedulerConfig { record: None, metrics_listen: None, ..config.scheduler };
    assert_eq!(scheduler, defaults.scheduler);
    assert_eq!(config.health.alerts, defaults.health.alerts);
    assert_eq!(config.bus.urls, defaults.bus.urls);
    assert_eq!(config.bus.root, defaults.bus.root);
}

fn is_option(text: &str) -> bool {
    let name = text.split(" = ").next().unwrap_or_default();
    text.contains(" = ") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[test]
fn llama_cpp_in_docker_is_told_the_context_of_all_its_slots() {
    let spec = model("engine = \"llama.cpp\"\nargs = [\"-hf\", \"a/b\"]\nconcurrency = 4\ncontext = 2048\n");
    assert_eq!(spec.engine.driver, Driver::Docker);
    assert_eq!(spec.engine.image.as_deref(), Some("ghcr.io/ggml-org/llama.cpp:server"));
    assert!(spec.engine.command.is_empty());
    assert_eq!(
        spec.engine.args.join(" "),
        "--host 0.0.0.0 --port {port} --alias {id} --parallel {concurrency} -c 8192 -hf a/b"
    );
    assert_eq!((spec.engine.port, spec.engine.health_path.as_str()), (8080, "/health"));
    assert_eq!(spec.memory, None);
}

#[test]
fn a_flag_of_the_models_own_stands_alone() {
    let spec =
        model("engine = \"llama.cpp\"\nargs = [\"-c\", \"512\", \"--host\", \"::\"]\ncontext = 2048\n");
    assert_eq!(
        spec.engine.args.join(" "),
        "--port {port} --alias {id} --parallel {concurrency} -c 512 --host ::"
    );
}

#[test]
fn llama_cpp_as_a_process_listens_where_the_agent_says() {
    let spec = model("engine = \"llama.cpp\"\ndriver = \"process\"\nargs = [\"-m\", \"x.gguf\"]\n");
    assert_eq!(spec.engine.command, ["llama-server"]);
    assert!(spec.engine.args.join(" ").starts_with("--host {host} --port {port}"));
    assert_eq!(spec.engine.image, None);
    let own = model("engine = \"llama.cpp\"\ncommand = [\"/opt/llama-server\"]\n");
    assert_eq!(
        (own.engine.driver, own.engine.command.join(" ")),
        (Driver::Process, "/opt/llama-server".into())
    );
}

#[test]
fn vllm_is_told_its_name_slots_and_accelerators() {
    let spec = model(
        "engine = \"vllm\"\nargs = [\"Qwen/Q\"]\naccelerators = 2\ncontext = 4096\nserved_name = \"q\"\n",
    );
    assert_eq!(
        spec.engine.args.join(" "),
        "Qwen/Q --served-model-name q --host 0.0.0.0 --port {port} --max-num-seqs {concurrency} \
         --max-model-len {context} --tensor-parallel-size 2"
    );
    assert_eq!((spec.engine.port, spec.concurrency, spec.engine.served_name.as_str()), (8000, 32, "q"));
}

#[test]
fn the_simulator_is_berth_itself_and_small() {
    let spec = model("engine = \"sim\"\n");
    assert_eq!(spec.engine.driver, Driver::Process);
    assert_eq!(spec.engine.command, ["{berth}"]);
    assert_eq!(
        spec.engine.args.join(" "),
        "sim-engine --host {host} --port {port} --id {id} --concurrency {concurrency}"
    );
    assert_eq!(spec.memory, Some(1024 * 1024));
}

#[test]
fn volumes_start_at_the_files_folder_and_named_ones_stay() {
    let spec = model("engine = \"llama.cpp\"\nvolumes = [\"./w:/m:ro\", \"cache:/c\", \"/a/./b:/d\"]\n");
    assert_eq!(spec.engine.volumes, ["/etc/berth/w:/m:ro", "cache:/c", "/a/b:/d"]);
}

#[test]
fn a_models_idle_time_comes_from_the_scheduler_unless_it_says() {
    let text = "[scheduler]\nidle_ttl = \"10m\"\n[[models]]\nid = \"a\"\nengine = \"sim\"\n\
                [[models]]\nid = \"b\"\nengine = \"sim\"\nidle_ttl = \"never\"\n";
    let models = Config::parse(text, "f").unwrap().models;
    assert_eq!(models[0].idle_ttl, Some(Duration::from_secs(600)));
    assert_eq!(models[1].idle_ttl, None);
}

#[test]
fn a_gguf_file_needs_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny-q4.gguf");
    // A header without fields or tensors, of 24 bytes, and what follows from the next 32 on.
    std::fs::write(&path, [b"GGUF\x03\0\0\0".as_slice(), &[0; 992]].concat()).unwrap();
    let mut config = Config::empty();
    let program = LlamaServer::Program("/usr/bin/llama-server".into());
    let spec = config.add_gguf(&path, &program).unwrap().clone();
    assert_eq!(spec.id.as_str(), "tiny-q4");
    // Its weights, the server's own, and which of 8192 tokens see which of a batch of 512, at two bytes.
    let runtime: u64 = if std::path::Path::new("/dev/nvidiactl").exists() { 600 } else { 512 };
    assert_eq!(spec.memory, Some(968 + (runtime << 20) + 8192 * 512 * 2));
    assert_eq!(spec.engine.command, ["/usr/bin/llama-server"]);
    assert!(
        spec.engine.args.ends_with(&["--model".into(), path.canonicalize().unwrap().display().to_string()])
    );
    assert!(matches!(config.add_gguf(&path, &program), Err(ModelFileError::Taken { .. })));

    let docker = Config::gguf_model(&path, &LlamaServer::Image { cuda: false }).unwrap();
    assert_eq!(docker.engine.driver, Driver::Docker);
    assert!(docker.engine.volumes[0].ends_with(":/models:ro"));
    assert!(docker.engine.args.ends_with(&["--model".into(), "/models/tiny-q4.gguf".into()]));
}

#[test]
fn a_file_that_is_no_gguf_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("page.gguf");
    let server = LlamaServer::Image { cuda: false };
    for content in ["", "GG", "<html>not found</html>"] {
        std::fs::write(&path, content).unwrap();
        let error = Config::gguf_model(&path, &server).unwrap_err().to_string();
        assert!(error.contains("page.gguf is not a GGUF file"), "{error}");
    }
    std::fs::write(&path, b"GGUF\x03\0\0\0\xff").unwrap();
    let error = Config::gguf_model(&path, &server).unwrap_err().to_string();
    assert!(error.contains("page.gguf") && error.contains("was it downloaded whole?"), "{error}");
    let error = Config::gguf_model(&dir.path().join("none.gguf"), &server).unwrap_err().to_string();
    assert!(error.contains("none.gguf") && error.contains("No such file"), "{error}");
}

#[test]
fn an_engine_is_started_with_its_adapters() {
    let adapters = "[[models.adapters]]\nid = \"a\"\npath = \"a.gguf\"\n[[models.adapters]]\nid = \"b\"\npath = \"/b\"\n";
    let vllm = model(&format!("engine = \"vllm\"\nargs = [\"M\"]\n{}", adapters.replace("a.gguf", "/a")));
    assert_eq!(
        vllm.engine.args.iter().rev().take(3).rev().collect::<Vec<_>>(),
        ["--enable-lora", "--max-loras", "2"]
    );
    assert_eq!(vllm.engine.env, ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]);
    assert_eq!((vllm.adapters.len(), vllm.max_adapters), (2, Some(2)));
    let llama = model(&format!("engine = \"llama.cpp\"\ndriver = \"process\"\n{adapters}"));
    let own = llama.engine.args.iter().rev().take(5).rev().collect::<Vec<_>>();
    assert_eq!(own, ["--lora", "/etc/berth/a.gguf", "--lora", "/b", "--lora-init-without-apply"]);
    assert_eq!((llama.engine.env.len(), llama.max_adapters), (0, None));
    assert!(model("engine = \"vllm\"\n").engine.env.is_empty());
}
