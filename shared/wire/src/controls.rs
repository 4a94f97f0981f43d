//! Routes by which an engine is changed rather than used: one table for each kind, from the engines' own sources and
//! documentation (November 2026). Whoever may use a model may not reach them by that alone.

use crate::catalog::EngineKind;

/// What a control route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// It changes the engine for everybody who uses it: adapters, caches, stored models, others' requests.
    Engine,
    /// It frees or takes memory, or stops the engine's work, behind the back of the scheduler, whose books would be
    /// wrong from then on.
    Books,
}

/// By which methods a route does what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// All but GET, HEAD and OPTIONS; by these it only tells.
    Writing,
    Any,
}

/// A route: its path in lower case, where `*` stands for one segment and `**` at the end for any that follow.
type Row = (&'static str, By, Control);

use By::{Any, Writing};
use Control::{Books, Engine};

/// llama-server, its router of several models included.
const LLAMA_CPP: [Row; 7] = [
    ("slots/*", Writing, Engine),
    ("lora-adapters", Writing, Engine),
    ("props", Writing, Engine),
    ("models", Writing, Engine),
    ("models/load", Any, Books),
    ("models/unload", Any, Books),
    ("cors-proxy", Any, Engine),
];

/// vLLM 0.32, with what only its development mode or a flag opens.
const VLLM: [Row; 26] = [
    ("sleep", Any, Books),
    ("wake_up", Any, Books),
    ("pause", Any, Books),
    ("resume", Any, Books),
    ("release_kv_cache_memory", Any, Books),
    ("scale_elastic_ep", Any, Books),
    ("shutdown", Any, Books),
    ("v1/load_lora_adapter", Any, Engine),
    ("v1/unload_lora_adapter", Any, Engine),
    ("load_lora_adapter", Any, Engine),
    ("unload_lora_adapter", Any, Engine),
    ("adapters/**", Writing, Engine),
    ("reset_prefix_cache", Any, Engine),
    ("reset_mm_cache", Any, Engine),
    ("reset_encoder_cache", Any, Engine),
    ("collective_rpc", Any, Engine),
    ("abort_request", Any, Engine),
    ("abort_requests", Any, Engine),
    ("start_profile", Any, Engine),
    ("stop_profile", Any, Engine),
    ("server_info", Any, Engine),
    ("init_weight_transfer_engine", Any, Engine),
    ("start_weight_update", Any, Engine),
    ("update_weights", Any, Engine),
    ("finish_weight_update", Any, Engine),
    ("configure_logging", Any, Engine),
];

/// Engines that a `custom` one may be: Ollama, SGLang, TabbyAPI and llama-swap.
const OTHERS: [Row; 28] = [
    ("api/delete", Any, Engine),
    ("api/pull", Any, Engine),
    ("api/push", Any, Engine),
    ("api/create", Any, Engine),
    ("api/copy", Any, Engine),
    ("api/blobs/*", Writing, Engine),
    ("flush_cache", Any, Engine),
    ("clear_hicache_storage_backend", Any, Engine),
    ("release_memory_occupation", Any, Books),
    ("resume_memory_occupation", Any, Books),
    ("pause_generation", Any, Books),
    ("continue_generation", Any, Books),
    ("update_weights_from_disk", Any, Engine),
    ("update_weights_from_tensor", Any, Engine),
    ("update_weights_from_distributed", Any, Engine),
    ("update_weights_from_ipc", Any, Engine),
    ("init_weights_update_group", Any, Engine),
    ("destroy_weights_update_group", Any, Engine),
    ("update_weight_version", Any, Engine),
    ("set_internal_state", Any, Engine),
    ("slow_down", Any, Engine),
    ("v1/model/load", Any, Books),
    ("v1/model/unload", Any, Books),
    ("v1/lora/load", Any, Engine),
    ("v1/lora/unload", Any, Engine),
    ("unload", Any, Books),
    ("api/models/unload", Any, Books),
    ("api/models/unload/*", Any, Books),
];

impl EngineKind {
    /// What a request to an engine of this kind would do beyond using it, if anything. A path counts however it is
    /// spelt: escaped, in any case, with empty or dotted segments, with a slash at its end or a query behind it.
    #[must_use]
    pub fn control(self, method: &str, path: &str) -> Option<Control> {
        let plain = plain(path);
        let segments: Vec<&str> = plain.iter().map(String::as_str).collect();
        let writes = !["GET", "HEAD", "OPTIONS"].iter().any(|read| method.eq_ignore_ascii_case(read));
        let find = |rows: &[Row], anywhere: bool| {
            let hit = |row: &&Row| (row.1 == Any || writes) && matches(row.0, &segments, anywhere);
            rows.iter().find(hit).map(|row| row.2)
        };
        match self {
            // Both can be told to serve below a prefix.
            Self::LlamaCpp => find(&LLAMA_CPP, true),
            Self::Vllm => find(&VLLM, true),
            Self::Sim | Self::Custom | Self::Ollama => {
                find(&LLAMA_CPP, false).or_else(|| find(&VLLM, false)).or_else(|| find(&OTHERS, false))
            }
        }
    }
}

fn matches(pattern: &str, segments: &[&str], anywhere: bool) -> bool {
    let starts = if anywhere { segments.len() } else { 1 };
    (0..starts).any(|from| {
        let mut rest = segments.get(from..).unwrap_or_default().iter();
        for part in pattern.split('/') {
            match (part, rest.next()) {
                ("**", _) => return true,
                ("*", Some(_)) => {}
                (part, Some(segment)) if part == *segment => {}
                _ => return false,
            }
        }
        rest.next().is_none()
    })
}

/// The segments of a path as the most lenient of servers might read it.
fn plain(path: &str) -> Vec<String> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut path = path.to_owned();
    // Some decode twice on the way.
    for _ in 0..4 {
        let decoded = decoded(&path);
        if decoded == path {
            break;
        }
        path = decoded;
    }
    let mut segments: Vec<String> = Vec::new();
    for segment in path.split(['/', '\\']) {
        // Parameters of a segment, as in `sleep;x=1`; and blanks, which URL parsers drop.
        let segment = segment.split(';').next().unwrap_or_default();
        let segment: String = segment
            .chars()
            .filter(|c| !c.is_whitespace() && !c.is_control())
            .flat_map(char::to_lowercase)
            .collect();
        match segment.as_str() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    segments
}

fn decoded(path: &str) -> String {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let escaped =
            (byte == b'%').then(|| Some(digit(ahead.next())? * 16 + digit(ahead.next())?)).flatten();
        match escaped.and_then(|code| u8::try_from(code).ok()) {
            Some(code) => {
                out.push(code);
                bytes = ahead;
            }
            None => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [EngineKind; 4] =
        [EngineKind::LlamaCpp, EngineKind::Vllm, EngineKind::Sim, EngineKind::Custom];

    #[test]
    fn each_kind_has_its_own_and_a_custom_engine_may_be_any() {
        let vllm = |method, path| EngineKind::Vllm.control(method, path);
        assert_eq!(vllm("POST", "/sleep?level=2"), Some(Control::Books));
        assert_eq!(vllm("POST", "/wake_up"), Some(Control::Books));
        assert_eq!(vllm("GET", "/is_sleeping"), None);
        assert_eq!(vllm("POST", "/v1/load_lora_adapter"), Some(Control::Engine));
        assert_eq!(vllm("DELETE", "/adapters/x"), Some(Control::Engine));
        assert_eq!(vllm("POST", "/below/a/prefix/sleep"), Some(Control::Books));
        let llama = |method, path| EngineKind::LlamaCpp.control(method, path);
        assert_eq!(llama("POST", "/slots/0?action=erase"), Some(Control::Engine));
        assert_eq!(llama("GET", "/slots"), None);
        assert_eq!(llama("GET", "/slots/0"), None);
        assert_eq!((llama("GET", "/props"), llama("POST", "/props")), (None, Some(Control::Engine)));
        assert_eq!(llama("POST", "/models/load"), Some(Control::Books));
        assert_eq!(llama("POST", "/sleep"), None, "it has none");
        let custom = |method, path| EngineKind::Custom.control(method, path);
        assert_eq!(custom("DELETE", "/api/delete"), Some(Control::Engine));
        assert_eq!(custom("GET", "/api/tags"), None);
        assert_eq!(custom("POST", "/release_memory_occupation"), Some(Control::Books));
        assert_eq!(custom("POST", "/sleep"), Some(Control::Books));
        assert_eq!(custom("POST", "/v1/tasks/7/resume"), None, "an API of its own");
    }

    #[test]
    fn a_route_counts_however_it_is_spelt() {
        for path in [
            "/sleep/",
            "//sleep",
            "/./sleep",
            "/x/../sleep",
            "/SLEEP",
            "/sl%65ep",
            "/%2fsleep",
            "%2Fsleep",
            "/%252fsleep",
            "/x%2f..%2Fsleep",
            "/x/%2e%2e/sleep",
            "\\sleep",
            "/sleep;a=b",
            "/sle%09ep",
            "/sleep#x",
        ] {
            assert_eq!(EngineKind::Vllm.control("POST", path), Some(Control::Books), "{path}");
            assert_eq!(EngineKind::Custom.control("POST", path), Some(Control::Books), "{path}");
        }
        assert_eq!(EngineKind::Vllm.control("POST", "/sleep/../tokenize"), None);
        assert_eq!(EngineKind::Vllm.control("POST", "/sleeper"), None);
    }

    #[test]
    fn no_route_with_a_name_of_its_own_is_a_control() {
        for kind in KINDS {
            for route in crate::Route::ALL {
                assert_eq!(kind.control("POST", route.path()), None, "{kind:?} {route:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_escaping_changes_nothing(path in "[a-z/.%_]{0,30}") {
            let escaped: String = path.bytes().map(|byte| format!("%{byte:02X}")).collect();
            for kind in KINDS {
                let found = kind.control("POST", &path);
                if !path.contains('%') {
                    prop_assert_eq!(kind.control("POST", &escaped), found);
                }
            }
        }
    }
}
