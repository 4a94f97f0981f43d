//! Every mistake in a file is shown at its line, with what to do.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use berth_config::Config;
use berth_wire::Route;

const SIM: &str = "[[models]]\nid = \"demo\"\nengine = \"sim\"\n";

fn complaint(text: &str) -> String {
    Config::parse(text, "berth.toml").unwrap_err().to_string()
}

#[track_caller]
fn refuses(text: &str, at: &str, parts: &[&str]) {
    let shown = complaint(text);
    // A line alone, as in `4:`, is enough where the column is not the point.
    let place = if at.ends_with(':') { at.to_owned() } else { format!("{at}: ") };
    assert!(shown.starts_with(&format!("berth.toml:{place}")), "expected {at} in:\n{shown}");
    for part in parts {
        assert!(shown.contains(part), "expected `{part}` in:\n{shown}");
    }
}

#[test]
fn a_typo_is_shown_with_its_line_a_caret_and_a_suggestion() {
    let text = format!("{SIM}idel_ttl = \"5m\"\n");
    assert_eq!(
        complaint(&text),
        "berth.toml:4:1: unknown field `idel_ttl`\n  \
         |\n\
         4 | idel_ttl = \"5m\"\n  \
         | ^^^^^^^^\n  \
         = did you mean `idle_ttl`?"
    );
    refuses("[gatway]\n", "1:2", &["unknown field `gatway`", "did you mean `gateway`?"]);
    refuses("[[models]]\nid = \"x\"\nengine = \"vlm\"\n", "3:10", &["did you mean `vllm`?"]);
}

#[test]
fn routes_are_those_that_there_are() {
    let custom = "[[models]]\nid = \"x\"\nengine = \"custom\"\nimage = \"x:1\"\n";
    let config =
        Config::parse(&format!("{custom}routes = [\"/v1/embeddings\", \"/rerank\"]\n"), "berth.toml")
            .unwrap();
    let engine = &config.models[0].engine;
    assert!(engine.serves(Route::Rerank) && engine.serves(Route::Upstream));
    assert!(!engine.serves(Route::ChatCompletions));
    refuses(
        &format!("{custom}routes = [\"/v1/embedings\"]\n"),
        "5:11",
        &["unknown route `/v1/embedings`", "did you mean `/v1/embeddings`?", "/upstream"],
    );
    refuses(&format!("{custom}routes = []\n"), "5:10", &["at least one route"]);
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    refuses("[gateway]\nlisten = \"127.0.0.1:8421\n", "2:25", &["expected `\"`", "2 | listen"]);
    refuses("[[models]]\nid = \n", "2:6", &["2 | id"]);
    refuses("a", "1:2", &["1 | a"]);
}

#[test]
fn a_value_of_the_wrong_kind_is_shown() {
    refuses("[gateway]\nlisten = 8421\n", "2:10", &["a string or a list of strings"]);
    refuses(&format!("{SIM}pin = \"yes\"\n"), "4:7", &["expected true or false, not text in quotes"]);
    refuses(&format!("{SIM}concurrency = -1\n"), "4:15", &["-1"]);
    refuses(&format!("{SIM}args = \"-m x\"\n"), "4:8", &["must be a list", "[\"-m\", \"x\"]"]);
}

#[test]
fn durations_and_sizes_without_a_unit_say_how_to_write_them() {
    refuses(&format!("{SIM}idle_ttl = 90\n"), "4:12", &["`90` lacks its unit", "\"15m\""]);
    refuses(&format!("{SIM}start_timeout = \"soon\"\n"), "4:17", &["`soon` is not a duration", "\"90s\""]);
    refuses(&format!("{SIM}memory = \"16\"\n"), "4:10", &["lacks its unit", "\"16GiB\""]);
    refuses(&format!("{SIM}memory = \"lots\"\n"), "4:10", &["`lots` is not a size"]);
    refuses(&format!("{SIM}memory = 17179869184\n"), "4:10", &["lacks its unit"]);
    refuses(&format!("{SIM}memory = \"0GiB\"\n"), "4:10", &["some memory"]);
}

#[test]
fn a_name_used_twice_names_the_first_line() {
    refuses(&format!("{SIM}{SIM}"), "5:6", &["`demo` is already the name of a model, in line 2"]);
    let alias = "[[models]]\nid = \"b\"\nengine = \"sim\"\naliases = [\"x\", \"demo\"]\n";
    refuses(&format!("{SIM}{alias}"), "7:17", &["line 2"]);
}

#[test]
fn an_engine_that_nothing_can_run_is_refused() {
    let custom = "[[models]]\nid = \"x\"\nengine = \"custom\"\n";
    refuses(custom, "3:10", &["needs an image"]);
    refuses(&format!("{custom}driver = \"docker\"\n"), "4:10", &["needs an image", "image = "]);
    refuses(&format!("{custom}driver = \"process\"\n"), "4:10", &["needs a command"]);
    refuses(&format!("{custom}driver = \"process\"\ncommand = []\n"), "5:11", &["needs a command"]);
    refuses(&format!("{custom}command = [\"serve\"]\n"), "4:11", &["its port", "{port}"]);
    refuses(
        &format!("{custom}driver = \"process\"\nimage = \"x\"\ncommand = [\"{{port}}\"]\n"),
        "5:9",
        &["image"],
    );
    refuses(
        "[[models]]\nid = \"x\"\nengine = \"llama.cpp\"\ndriver = \"podman\"\n",
        "4:10",
        &["docker, process"],
    );
    refuses("[[models]]\nengine = \"sim\"\n", "1:1", &["missing field `id`"]);
}

#[test]
fn placeholders_are_checked_to_the_letter() {
    refuses(
        &format!("{SIM}args = [\"--x\", \"a{{prot}}\"]\n"),
        "4:18",
        &["`{prot}`", "did you mean `port`?"],
    );
    refuses(&format!("{SIM}env = [\"A={{context}}\"]\n"), "4:11", &["context = N"]);
    Config::parse(&format!("{SIM}args = [\"{{\\\"json\\\": 1}}\", \"{{{{ jinja }}}}\"]\n"), "f").unwrap();
}

#[test]
fn flags_that_berth_must_know_are_refused() {
    let llama = "[[models]]\nid = \"x\"\nengine = \"llama.cpp\"\n";
    refuses(&format!("{llama}args = [\"-np\", \"4\"]\n"), "4:9", &["concurrency = N"]);
    refuses(&format!("{llama}args = [\"--port\", \"9000\"]\n"), "4:9", &["Berth chooses the port"]);
    Config::parse(&format!("{llama}args = [\"--port={{port}}\", \"-np\", \"{{concurrency}}\"]\n"), "f")
        .unwrap();
}

#[test]
fn names_numbers_and_paths_out_of_range_are_refused() {
    refuses("[host]\nname = \"gpu 1\"\n", "2:8", &["`gpu 1` is no host name", "letters, digits"]);
    refuses(&format!("{SIM}concurrency = 0\n"), "4:15", &["at least 1"]);
    refuses(&format!("{SIM}accelerators = 0\n"), "4:16", &["at least 1"]);
    refuses(&format!("{SIM}health_path = \"health\"\n"), "4:15", &["begins with `/`"]);
    refuses(&format!("{SIM}env = [\"A B=c\"]\n"), "4:8", &["NAME=value"]);
    refuses("[gateway]\nlisten = \"here\"\n", "2:11", &["`here` is not an address", "127.0.0.1:8421"]);
    refuses("[bus]\nroot = \"a b\"\n", "2:8", &["root of subjects"]);
    refuses("[bus]\nurls = \"http://x\"\n", "2:8", &["nats://"]);
    refuses("[[models]]\nid = \"a{b}\"\nengine = \"sim\"\n", "2:6", &["brace"]);
    let volumes = "[[models]]\nid = \"x\"\nengine = \"llama.cpp\"\nvolumes = [\"/data\"]\n";
    refuses(volumes, "4:12", &["source and a target"]);
}

#[test]
fn a_pinned_model_must_fit_the_host_it_is_for() {
    let text = format!("[host]\nmemory = \"8GiB\"\n{SIM}pin = true\nmemory = \"9GiB\"\n");
    refuses(&text, "7:10", &["pinned and needs 9.0 GiB", "[host] memory is 8.0 GiB"]);
    Config::parse(&format!("{text}labels = [\"another=host\"]\n"), "f").unwrap();
}

#[test]
fn every_problem_is_listed_in_the_order_of_the_file() {
    let shown = complaint(&format!("[host]\nname = \"a b\"\n{SIM}concurrency = 0\naccelerators = 0\n"));
    let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with("berth.toml:")).collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].starts_with("berth.toml:2:") && lines[2].starts_with("berth.toml:7:"), "{shown}");
}

#[test]
fn no_secret_shows_in_a_complaint() {
    for text in [
        "[bus]\ntoken = \"hunter2\n",
        "[bus]\ntoken = [\"hunter2\"]\n",
        "[bus]\nnkey = hunter2\n",
        "[bus]\nurls = \"http://me:hunter2@x\"\n",
    ] {
        let shown = complaint(text);
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let shown = complaint(&format!("{SIM}env = [\"HF_TOKEN=hunter2\", \"A B\"]\n"));
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(!complaint("[bus]\ntoken = 4711\n").contains("4711"));
}

#[test]
fn what_no_machine_has_is_refused() {
    refuses(&format!("{SIM}start_timeout = \"0s\"\n"), "4:17", &["less than a second"]);
    refuses("[gateway]\nbody_limit = \"0B\"\n", "2:14", &["out of range", "1024 to "]);
    refuses("[gateway]\nbody_timeout = \"0s\"\n", "2:16", &["too short", "30s"]);
    refuses(&format!("{SIM}memory = \"65TiB\"\n"), "4:10", &["no machine has", "64TiB"]);
    refuses("[host]\nmemory = \"1PiB\"\n", "2:10", &["no machine has"]);
    refuses(&format!("{SIM}concurrency = 65537\n"), "4:15", &["concurrency of 65537", "1 to 65536"]);
    Config::parse(&format!("{SIM}memory = \"64TiB\"\nconcurrency = 65536\nstart_timeout = \"1s\"\n"), "f")
        .unwrap();
}

#[test]
fn an_address_of_nats_must_be_one() {
    for (url, told) in [
        ("http://x", "begins with nats://"),
        ("", "no address"),
        ("nats://", "no address"),
        ("nats://a b:4222", "no address"),
        ("nats://:4222", "no address"),
        ("nats://x:port", "is no port"),
        ("x:99999", "is no port"),
    ] {
        refuses(&format!("[bus]\nurls = [\"{url}\"]\n"), "2:8", &[told]);
    }
    for url in ["nats://u:p@h:4222", "h", "h:4222", "tls://[::1]:4222", "wss://h/nats", "nats://[::1]"] {
        Config::parse(&format!("[bus]\nurls = \"{url}\"\n"), "f").unwrap();
    }
}

#[test]
fn placeholders_in_capitals_are_not_passed_on_as_they_are() {
    for field in ["args = [\"a{PORT}\"]", "env = [\"A=a{PORT}\"]", "command = [\"a{PORT}\", \"{port}\"]"] {
        refuses(&format!("{SIM}{field}\n"), "4:", &["unknown placeholder `{PORT}`", "did you mean `port`?"]);
    }
}

#[test]
fn types_are_told_in_plain_words() {
    refuses("[models]\nid = \"x\"\n", "1:", &["expected a list", "[[models]]"]);
    refuses("models = 5\n", "1:10", &["expected a list, not a number"]);
    refuses("gateway = 5\n", "1:11", &["expected a table, not a number"]);
    refuses(&format!("{SIM}concurrency = \"4\"\n"), "4:15", &["expected a whole number, not text in quotes"]);
    for (field, range) in [
        ("concurrency = -1", "from 1 to 65536, not -1"),
        ("context = 5000000000", "from 1 to 4294967295, not 5000000000"),
        ("port=70000", "from 1 to 65535, not 70000"),
    ] {
        refuses(&format!("{SIM}{field}\n"), "4:", &[&format!("expected a whole number {range}")]);
    }
    refuses("[gateway]\nworkers = -1\n", "2:11", &["expected a whole number of at least 1, not -1"]);
    refuses(&format!("{SIM}args = 5\n"), "4:8", &["expected a list of strings, not a number"]);
    for text in ["[models]\n", "models = 5\n", &format!("{SIM}image = []\n")] {
        let shown = complaint(text);
        assert!(
            !shown.contains("sequence") && !shown.contains("struct") && !shown.contains("invalid type"),
            "{shown}"
        );
    }
}

#[test]
fn an_alias_used_twice_names_both_models() {
    let model = |id: &str| format!("[[models]]\nid = \"{id}\"\nengine = \"sim\"\naliases = [\"x\"]\n");
    refuses(
        &(model("a") + &model("b")),
        "8:12",
        &["`x` of model `b` is already an alias of model `a`, in line 4"],
    );
}

#[test]
fn a_malformed_variable_does_not_show_what_it_holds() {
    for field in [
        "env = [\"MY PW=hunter2\"]",
        "env = [\"hunter2 \"]",
        "env = ['MY PW=hunter2']",
        "env = [\n  \"MY PW=hunter2\",\n]",
        "env = \"PW=hunter2\"",
        "env = { PW = \"hunter2\" }",
    ] {
        let shown = complaint(&format!("{SIM}{field}\n"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn a_secret_that_is_not_there_is_named_by_its_path() {
    let text = "[bus]\ntoken_file = \"/no/such/token\"\n";
    refuses(text, "2:14", &["cannot read /no/such/token: No such file"]);
}

#[test]
fn a_folder_or_a_pipe_is_no_configuration() {
    let folder = std::env::temp_dir();
    let error = Config::load(&folder).unwrap_err().to_string();
    assert!(error.contains("it is a folder, not a file"), "{error}");
    let pipe = folder.join(format!("berth-test-pipe-{}", std::process::id()));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = Config::load(&pipe).unwrap_err().to_string();
    std::fs::remove_file(&pipe).unwrap();
    assert!(error.contains("it is no regular file"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(std::path::Path::new("/no/such/berth.toml")).unwrap_err().to_string();
    assert!(error.contains("/no/such/berth.toml") && error.contains("--config"), "{error}");
}

#[test]
fn limits_of_queues_leases_and_replicas_are_at_least_one() {
    for name in
        ["queue_limit", "model_queue_limit", "key_queue_limit", "leases_per_session", "leases_per_key"]
    {
        let at = format!("2:{}", name.len() + 4);
        refuses(&format!("[scheduler]\n{name} = 0\n"), &at, &["at least 1", "the default is "]);
    }
    refuses(&format!("{SIM}replicas = 0\n"), "4:12", &["replicas must be at least 1", "leave it out"]);
}

#[test]
fn a_lease_ceiling_is_between_a_second_and_a_day() {
    for value in ["0s", "25h"] {
        let text = format!("[scheduler]\nlease_ceiling = \"{value}\"\n");
        refuses(&text, "2:17", &["1s to 24h", "\"1h\""]);
    }
    let config = Config::parse("[scheduler]\nlease_ceiling = \"24h\"\n", "berth.toml").unwrap();
    assert_eq!(config.scheduler.lease_ceiling.as_secs(), 24 * 3600);
}

#[test]
fn decisions_are_written_to_a_new_file_or_to_one_that_a_scheduler_began() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    std::fs::write(at("diary"), "Dear diary\n").unwrap();
    for (name, text) in [
        ("empty", ""),
        ("cut", "{\"ber"),
        ("ours", "{\"berth_log\":2,\"epoch\":1}\n"),
        ("restarted", "\n{\"berth_log\":1"),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let parse = |name: &str| {
        let text = format!("[scheduler]\nqueue_limit = 5\nrecord = \"{name}\"\n");
        Config::parse(&text, at("berth.toml").to_str().unwrap())
    };
    for (name, why) in [
        ("folder", "it is a folder"),
        ("pipe", "it is no regular file"),
        ("diary", "that no scheduler wrote"),
    ] {
        let shown = parse(name).unwrap_err().to_string();
        assert!(shown.contains("berth.toml:3:10: decisions cannot be written to "), "{shown}");
        assert!(shown.contains(why) && shown.contains("not there yet"), "{shown}");
    }
    for name in ["new", "empty", "cut", "ours", "restarted"] {
        assert_eq!(parse(name).unwrap().scheduler.record, Some(at(name)));
    }
}

#[test]
fn a_registry_is_named_by_its_address_and_its_password_by_where_it_is() {
    let entry = "[[host.registries]]\naddress = \"r.example:5000\"\nuser = \"me\"\n";
    let text = format!("{entry}password_env = \"REG_PW\"\n");
    let config = Config::parse(&text, "berth.toml").unwrap();
    let problem = config.host.registries[0].password().unwrap_err();
    assert!(problem.contains("r.example:5000") && problem.contains("REG_PW"), "{problem}");
    refuses(entry, "2:11", &["one place", "password_env"]);
    refuses(&format!("{entry}password = \"x\"\n"), "4:1", &["unknown field `password`"]);
    let shown = complaint(&format!("{entry}password_env = \"hunter 2\"\n"));
    assert!(shown.contains("no name of an environment variable") && !shown.contains("hunter"), "{shown}");
    refuses(&entry.replace("r.example:5000", "https://r.example"), "2:11", &["without a path"]);
    let twice = format!("{text}{text}");
    refuses(&twice, "6:11", &["has an entry already"]);
}

#[test]
fn what_an_engine_may_use_is_checked_and_some_of_it_is_of_containers_alone() {
    let model = "[[models]]\nid = \"x\"\nengine = \"llama.cpp\"\n";
    let container = |more: &str| {
        let config = Config::parse(&format!("{model}{more}"), "berth.toml").unwrap();
        config.models[0].engine.container.clone()
    };
    let given = container(
        "shm_size = \"1GiB\"\nulimits = [\"memlock=-1\", \"nofile=1024:4096\"]\ncpuset = \"0-3,8\"\n",
    );
    assert_eq!((given.shm, given.cpus.as_deref()), (Some(1 << 30), Some("0-3,8")));
    assert_eq!((given.ulimits[0].hard, given.ulimits[1].soft, given.ulimits[1].hard), (-1, 1024, 4096));
    assert!(given.read_only, "llama-server writes nothing");
    assert!(!container("args = [\"-hf\", \"x/y\"]\n").read_only, "what it fetches must go somewhere");
    assert!(container("args = [\"-hf\", \"x/y\"]\nvolumes = [\"cache:/cache\"]\n").read_only);
    assert!(!container("read_only = false\n").read_only);
    let process = container("driver = \"process\"\ncpuset = \"0\"\npids_limit = 99\nram = \"1GiB\"\n");
    assert_eq!((process.cpus.as_deref(), process.pids, process.ram), (Some("0"), Some(99), Some(1 << 30)));
    let slow = container("pull_timeout = \"10m\"\n");
    assert_eq!(slow.pull_timeout, Some(std::time::Duration::from_secs(600)));
    for (field, at, part) in [
        ("ulimits = [\"memlok=-1\"]", "4:12", "did you mean `memlock`?"),
        ("ulimits = [\"nofile=9:1\"]", "4:12", "name=soft:hard"),
        ("ipc = \"hosts\"", "4:7", "did you mean `host`?"),
        ("cpuset = \"3-1\"", "4:10", "\"0-3,8\""),
        ("pids_limit = 1", "4:14", "32768"),
        ("ram = \"0GiB\"", "4:7", "no limit"),
        ("shm_size = \"0MiB\"", "4:12", "shared memory"),
        ("pull_timeout = \"0s\"", "4:16", "leave it out for 3m"),
        ("driver = \"process\"\nread_only = true", "5:13", "runs as a process"),
        ("driver = \"process\"\npull_timeout = \"1m\"", "5:16", "runs as a process"),
        ("driver = \"process\"\ncpuset = \"x\"", "5:10", "\"0-3,8\""),
    ] {
        refuses(&format!("{model}{field}\n"), at, &[part]);
    }
}

#[test]
fn an_adapter_stands_below_a_model_whose_engine_can_serve_it() {
    let base = "[[models]]\nid = \"base\"\nengine = \"vllm\"\n";
    let adapter = "[[models.adapters]]\nid = \"sql\"\npath = \"/sql\"\n";
    let server = "[[external]]\nurl = \"http://127.0.0.1:8000\"\n[[external.adapters]]\nid = \"sql\"\n";
    refuses(server, "3:12", &["unknown field `adapters`", "found with those"]);
    refuses(&format!("{base}adapter_of = \"x\"\n"), "4:1", &["[[models.adapters]], with id and path"]);
    let nested = adapter.replace("models.", "models.adapters.");
    refuses(&format!("{base}{adapter}{nested}"), "7:", &["not of an adapter"]);
    refuses(&format!("{SIM}{adapter}"), "5:6", &["engine \"sim\"", "\"vllm\" and \"llama.cpp\""]);
    refuses(
        &format!("{base}{adapter}{adapter}"),
        "8:6",
        &["`sql` is already the name of a model, in line 5"],
    );
    refuses(&format!("{base}{}", adapter.replace("/sql", "sql")), "6:8", &["no absolute path"]);
    refuses(&format!("{base}{}", adapter.replace("/sql", "")), "6:8", &["read from somewhere"]);
    refuses(&format!("{base}max_adapters = 2\n"), "4:16", &["has no adapters"]);
    refuses(&format!("{base}args = [\"--max-loras\", \"2\"]\n{adapter}"), "4:9", &["`max_adapters = N`"]);
    let llama = base.replace("vllm", "llama.cpp");
    refuses(
        &format!("{llama}args = [\"--lora\", \"x\"]\n{adapter}"),
        "4:9",
        &["Berth passes `--lora` itself"],
    );
    refuses(&format!("{llama}{}", adapter.replace("/sql", "/a,b")), "6:8", &["comma"]);
    let key = "[[gateway.keys]]\nname = \"k\"\nmodels = [\"sql\", \"sqk\"]\nhash = \"HASH\"\n"
        .replace("HASH", &berth_wire::KeyHash::of("k").to_text());
    refuses(&format!("{base}{adapter}{key}"), "9:18", &["`sqk`", "did you mean `sql`?"]);
}

#[test]
fn contexts_are_kept_only_where_they_can_be() {
    let llama =
        "[[models]]\nid = \"m\"\nengine = \"llama.cpp\"\ndriver = \"process\"\nkeep_context = \"1h\"\n";
    assert!(Config::parse(llama, "f").is_ok());
    for also in [llama.replace("process", "docker"), llama.replace("1h", "off")] {
        assert!(Config::parse(&also, "f").is_ok(), "{also}");
    }
    refuses(&llama.replace("llama.cpp", "vllm"), "5:16", &["only contexts of llama.cpp"]);
    refuses(&llama.replace("\"1h\"", "5"), "5:16", &["\"off\""]);
    refuses(&llama.replace("1h", "0s"), "5:16", &["\"1s\" to \"24h\""]);
    refuses(&format!("{llama}args = [\"--slot-save-path\", \"/x\"]\n"), "6:9", &["leave this out"]);
    refuses(&format!("{llama}[[models.adapters]]\nid = \"a\"\npath = \"/a\"\n"), "5:16", &["with adapters"]);
}
