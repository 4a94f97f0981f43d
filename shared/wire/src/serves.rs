//! Which kind of engine serves which route: one table, from the engines' own sources and documentation (November 2026).
//!
//! What an engine serves also depends on its model and arguments (llama.cpp reranks only with `--reranking`, vLLM
//! transcribes only with a speech model): then it refuses by itself, and its own words reach the client.

use crate::catalog::{Driver, EngineKind, EngineSpec};
use crate::route::Route;

/// llama-server, with what needs a flag of its own (`--embeddings`, `--reranking`) or a model for sound.
const LLAMA_CPP: [Route; 10] = [
    Route::ChatCompletions,
    Route::Completions,
    Route::Embeddings,
    Route::Responses,
    Route::Rerank,
    Route::Transcriptions,
    Route::Tokenize,
    Route::Detokenize,
    Route::Messages,
    Route::CountTokens,
];

/// vLLM 0.32, with what needs a model for it.
const VLLM: [Route; 11] = [
    Route::ChatCompletions,
    Route::Completions,
    Route::Embeddings,
    Route::Responses,
    Route::Rerank,
    Route::Transcriptions,
    Route::Translations,
    Route::Tokenize,
    Route::Detokenize,
    Route::Messages,
    Route::CountTokens,
];

/// Of these, what an adapter changes nothing of, or is named in.
const LLAMA_CPP_ADAPTERS: [Route; 7] = [
    Route::ChatCompletions,
    Route::Completions,
    Route::Responses,
    Route::Messages,
    Route::CountTokens,
    Route::Tokenize,
    Route::Detokenize,
];

/// Ollama 0.17, with what needs a model for it.
const OLLAMA: [Route; 7] = [
    Route::ChatCompletions,
    Route::Completions,
    Route::Embeddings,
    Route::Responses,
    Route::ImageGenerations,
    Route::ImageEdits,
    Route::Messages,
];

/// The simulator: text, and what no engine above serves.
const SIM: [Route; 9] = [
    Route::ChatCompletions,
    Route::Completions,
    Route::Embeddings,
    Route::Speech,
    Route::Transcriptions,
    Route::Translations,
    Route::ImageGenerations,
    Route::ImageEdits,
    Route::Moderations,
];

impl EngineKind {
    /// The routes that engines of this kind serve, beside [`Route::Upstream`], which all do.
    #[must_use]
    pub fn routes(self) -> &'static [Route] {
        match self {
            Self::LlamaCpp => &LLAMA_CPP,
            Self::Vllm => &VLLM,
            Self::Sim => &SIM,
            Self::Ollama => &OLLAMA,
            Self::Custom => &Route::ALL,
        }
    }

    /// Where an engine of this kind has a route. All kinds agree with the gateway today; one that does not is
    /// entered here.
    #[must_use]
    pub fn path(self, route: Route) -> &'static str {
        match (self, route) {
            (Self::LlamaCpp | Self::Vllm | Self::Sim | Self::Custom | Self::Ollama, route) => route.path(),
        }
    }
}

impl EngineSpec {
    /// The routes that this engine serves, beside [`Route::Upstream`].
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        self.routes.as_deref().unwrap_or_else(|| self.kind.routes())
    }

    /// Whether it serves a route. Paths of its own are served by engines that Berth runs, and by no external server:
    /// there they may pull, delete or configure, with a key that is Berth's and not the client's.
    #[must_use]
    pub fn serves(&self, route: Route) -> bool {
        match route {
            Route::Upstream => self.driver != Driver::External,
            route => self.routes().contains(&route),
        }
    }

    /// Whether it serves a route for an adapter of its model. llama-server reads which one from the body of what it
    /// completes, and from nothing else; its tokens are its model's.
    #[must_use]
    pub fn serves_adapter(&self, route: Route) -> bool {
        let by_name = match (self.kind, route) {
            (_, Route::Upstream) => false,
            (EngineKind::LlamaCpp, route) => LLAMA_CPP_ADAPTERS.contains(&route),
            _ => true,
        };
        by_name && self.serves(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_found_by_any_of_its_paths() {
        for route in Route::ALL {
            assert_eq!(Route::of_path(route.path()), Some(route));
        }
        assert_eq!(Route::of_path("/v2/rerank"), Some(Route::Rerank));
        assert_eq!(Route::of_path("/upstream"), None, "it is never declared: every engine has it");
    }

    #[test]
    fn no_engine_serves_a_route_twice() {
        for kind in
            [EngineKind::LlamaCpp, EngineKind::Vllm, EngineKind::Sim, EngineKind::Custom, EngineKind::Ollama]
        {
            let routes = kind.routes();
            for (n, route) in routes.iter().enumerate() {
                assert!(!routes.iter().skip(n + 1).any(|other| other == route), "{kind:?} {route:?}");
            }
        }
    }
}
